"""Every timm architecture that has an adapter, against its anchor: outputs, parameters and cuts, difference 0.0.

    python benchmarks/anchors.py --most-params 150e6

Networks have random weights. The script checks three things: the anchor's output in eval and in train mode (same seed,
drop path on) equals the model's bit for bit; every parameter takes part somewhere; and the network cut in two after its
first block gives the whole output, where each half has only its own parameters.
"""

from __future__ import annotations

import argparse
import gc
import time

import timm
import torch
from torch import nn

import snnet
from snnet.anchors.registry import has_adapter


def check(model: nn.Module) -> str:
    """What is wrong with the anchor of a model; empty where nothing is."""
    anchor = snnet.as_anchor(model)
    images = torch.randn(2, *anchor.input_size)
    for training in (False, True):
        model.train(training)
        torch.manual_seed(1)
        expected = model(images)
        torch.manual_seed(1)
        if not torch.equal(anchor(images), expected):
            return f'differs with training={training}'
    unused = {name for name, _ in model.named_parameters()} - anchor.parameter_names()
    if unused:
        return f'parameters without a part: {sorted(unused)[:3]}'
    model.eval()
    middle = anchor.blocks()[0][0] + 1
    front, end = anchor.cut(None, middle), anchor.cut(middle, None)
    if not torch.equal(end.run(front.run(images, None, middle), middle, None), model(images)):
        return 'differs when cut in two'
    held = sum(p.numel() for half in (front, end) for p in half.parameters())
    return '' if held == sum(p.numel() for p in model.parameters()) else 'the halves hold other parameters'


@torch.no_grad()
def main() -> None:
    """Prints a line for each failure and a summary."""
    parser = argparse.ArgumentParser(description='Checks the anchors of all timm architectures that have an adapter.')
    parser.add_argument('--most-params', type=float, default=150e6, help='leave out larger networks')
    args = parser.parse_args()
    exact, larger, failures = 0, 0, []
    said = time.monotonic()
    for name in timm.list_models():
        with torch.device('meta'):
            try:
                skeleton = timm.create_model(name)
            except Exception:  # some of timm's other families cannot be made without memory
                continue
        if not has_adapter(skeleton):
            continue
        if sum(p.numel() for p in skeleton.parameters()) > args.most_params:
            larger += 1
            continue
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, drop_path_rate=0.1)
        except TypeError:
            model = timm.create_model(name)  # does not know drop path
        wrong = check(model)
        exact += not wrong
        if wrong:
            failures.append(name)
            print(f'{name}: {wrong}', flush=True)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f'... {name}: {exact} exact, {len(failures)} not', flush=True)
        del model
        gc.collect()
    print(f'{exact} architectures exact, {len(failures)} not, {larger} larger than {args.most_params:.0f} left out')


if __name__ == '__main__':
    main()
