"""What branches cost in training, and nothing after folding: ResNet-18 at 64 px, grown, folded and plain.

    python benchmarks/branch_step_time.py --pairs 7

Prints the median ratio of times to those of the plain network in the same run: of a forward pass in eval mode with all
seven branches and after folding, and of a training step with `observe` and `step` of a Grower that never acts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnet.reparam import Grower, expand, folded


def ratio(act: Callable[[], object], plain: Callable[[], object], pairs: int) -> float:
    """The median of repeated pairs of times, of `act` to `plain`."""
    return statistics.median(_seconds(act) / _seconds(plain) for _ in range(pairs + 1))


def _seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def trainer(model: nn.Module, images: Tensor, grower: Grower | None) -> Callable[[], None]:
    """One step of training, watched by a grower or not."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    targets = torch.zeros(len(images), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        if grower is not None:
            grower.observe()
        optimizer.step()
        if grower is not None:
            grower.step()

    return step


def main() -> None:
    """Prints three ratios."""
    parser = argparse.ArgumentParser(description='Times grown and folded networks against plain ones.')
    parser.add_argument('--pairs', type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    plain, images = timm.create_model('resnet18').eval(), torch.randn(8, 3, 64, 64)
    grown = expand(copy.deepcopy(plain), images=images).eval()
    deployed = folded(grown, images[:1])
    watched = copy.deepcopy(plain).train()
    grower = Grower(watched, every=10**9)
    unwatched = trainer(copy.deepcopy(plain).train(), images, None)
    with torch.no_grad():
        print(f'eval, seven branches: {ratio(lambda: grown(images), lambda: plain(images), args.pairs):.2f} x')
        print(f'eval, folded:         {ratio(lambda: deployed(images), lambda: plain(images), args.pairs):.2f} x')
    print(f'training, watched:    {ratio(trainer(watched, images, grower), unwatched, args.pairs):.2f} x')


if __name__ == '__main__':
    main()
