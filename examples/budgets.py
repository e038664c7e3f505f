"""Runs one saved net at one budget after another, as a service would.

python examples/budgets.py output/demo/run/net --plugin examples/digits.py
"""

from __future__ import annotations

import argparse
import time

import torch

import snnet
from snnet.utils.plugins import import_plugins


def main() -> None:
    """Prints which stitch each budget gives, and that switching between them costs nothing."""
    parser = argparse.ArgumentParser(description='Moves a saved net along its frontier.')
    parser.add_argument('net', help='folder of a saved net')
    parser.add_argument('--plugin', nargs='+', default=[], help='files that register its networks')
    args = parser.parse_args()
    import_plugins(args.plugin)
    net = snnet.StitchableNet.from_pretrained(args.net)
    images = torch.zeros(1, *net.input_size)
    costs = sorted(record.flops for record in net.records if record.flops is not None)
    print(f'{"budget":>12}  {"stitch":>6}  {"FLOPs":>12}  {"top-1":>6}')
    for tenth in range(11):
        budget = costs[0] + (costs[-1] - costs[0]) * tenth // 10
        stitch = net.select_for_budget(budget)
        logits = net(images)
        record = net.records[stitch]
        print(f'{budget:>12,}  {stitch:>6}  {record.flops:>12,}  {record.top1:>6.2f}  {record.legs}')
        assert logits.shape == (1, net.num_classes)
    try:
        net.select_for_budget(costs[0] / 2)
    except snnet.BudgetInfeasible as error:
        print('half of the smallest:', error)
    begin = time.perf_counter()
    for stitch in range(len(net.stitches)):
        net.set_stitch(stitch)
    print(f'a switch takes {1e6 * (time.perf_counter() - begin) / len(net.stitches):.1f} microseconds')


if __name__ == '__main__':
    main()
