"""Gradients of two ranks: ours, sent during the backward pass or after it, and plain DDP; same steps, in one run.

    python benchmarks/exchange.py --steps 12
    python benchmarks/exchange.py --anchors test_vit,test_vit2 --steps 3      (seconds)

The plain way is torch's DistributedDataParallel with find_unused_parameters=True, which reduces the gradients of every
anchor in every step. Ours exchanges those of the active parameters alone: during the backward pass, as training does,
or after it. Each way trains a copy of the same net (no weights needed) on two processes of this machine, one thread
each, joined by gloo; every step runs all ways, in changing order. The script prints seconds per step, megabytes that
each rank exchanges, the medians of the ratios of the same steps, and whether the replicas end equal.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F

import snnet
from snnet.training.gradient_exchange import Exchange
from snnet.training.samplers import StratifiedSampler
from snnet.utils.distributed import Ranks
from snnet.utils.seeds import generator, seed_libraries

WORLD = 2
PLAIN, AFTER, DURING = 'plain DDP', 'after the backward', 'during the backward'
Way = Callable[[Tensor, Tensor, int], None]


def plain(net: snnet.StitchableNet) -> Way:
    """A step of torch's own way."""
    wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    wrapped.register_comm_hook(None, allreduce_hook)  # what it does by default, where it can be counted
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def step(images: Tensor, classes: Tensor, stitch: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(wrapped(images, stitch=stitch), classes).backward()
        optimizer.step()

    return step


def ours(net: snnet.StitchableNet, exchange: Exchange, during: bool) -> Way:
    """A step that exchanges what is active, during the backward pass or after it."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def step(images: Tensor, classes: Tensor, stitch: int) -> None:
        optimizer.zero_grad()
        active = exchange.active([[stitch]] * WORLD)
        loss = F.cross_entropy(net(images, stitch=stitch), classes)
        with active.gradients.sending() if during else nullcontext():
            loss.backward()
        exchange.average(active, torch.zeros(1, dtype=torch.float64))
        optimizer.step()

    return step


class Traffic:
    """Counts the bytes that `all_reduce` gets."""

    def __init__(self) -> None:
        self.bytes = 0
        self._all_reduce: Any = dist.all_reduce
        dist.all_reduce = self  # all ways look it up there

    def __call__(self, tensor: Tensor, *args: Any, **options: Any) -> Any:
        """Counts and passes on."""
        self.bytes += tensor.nbytes
        return self._all_reduce(tensor, *args, **options)


def rank_of_two(rank: int, store: str, args: argparse.Namespace) -> None:
    """Times all ways on one rank; the first prints."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{store}', rank=rank, world_size=WORLD)
    ranks = Ranks(rank, WORLD, torch.device('cpu'))
    seed_libraries(0)
    nets = [snnet.create_stitchable_net(args.anchors, pretrained=False).train()]
    nets += [copy.deepcopy(nets[0]) for _ in range(2)]
    exchanges = [Exchange(net, ranks) for net in nets]
    ways = {
        PLAIN: plain(nets[0]),
        AFTER: ours(nets[1], exchanges[1], during=False),
        DURING: ours(nets[2], exchanges[2], during=True),
    }
    sampler = StratifiedSampler(0, False, 1, tuple(range(len(nets[0].stitches))))
    traffic = Traffic()
    orders = list(itertools.permutations(ways))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    megabytes: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.warmup + args.steps):
        draws = generator(0, 'benchmark', number, rank)
        images = torch.randn(args.batch_size, *nets[0].input_size, generator=draws)
        classes = torch.randint(nets[0].num_classes, (args.batch_size,), generator=draws)
        for name in orders[number % len(orders)]:
            dist.barrier()
            begin, before = time.perf_counter(), traffic.bytes
            ways[name](images, classes, sampler(number))
            dist.barrier()
            if number >= args.warmup:
                seconds[name].append(time.perf_counter() - begin)
                megabytes[name].append((traffic.bytes - before) / 1e6)
        if rank == 0:
            print(f'step {number - args.warmup} of {args.steps}, stitch {sampler(number)}', flush=True)
    equal = [not exchange.differing_ranks() for exchange in exchanges]
    if rank == 0:
        report(args, seconds, megabytes, equal)
        print(f'weights differ from those of "{DURING}" by at most: ', end='')
        print(', '.join(f'{name} {_difference(net, nets[2]):.1e}' for name, net in zip(ways, nets[:2], strict=False)))
    dist.destroy_process_group()


def report(
    args: argparse.Namespace,
    seconds: dict[str, list[float]],
    megabytes: dict[str, list[float]],
    equal: list[bool],
) -> None:
    """Prints what was measured."""
    print(
        f'{args.anchors}, batches of {args.batch_size}, {WORLD} ranks with one thread each, torch {torch.__version__}'
    )
    for (name, times), same in zip(seconds.items(), equal, strict=True):
        print(
            f'{name:>19}  {statistics.median(times):.3f} s a step  {statistics.mean(megabytes[name]):6.1f} MB a step  '
            f'replicas equal: {same}'
        )
    for name in (PLAIN, AFTER):
        ratios = [a / b for a, b in zip(seconds[name], seconds[DURING], strict=True)]
        less = statistics.mean(megabytes[name]) / statistics.mean(megabytes[DURING])
        print(
            f'"{DURING}" against "{name}", median of the ratios over {len(ratios)} steps: '
            f'{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}), '
            f'{less:.2f} times less to send'
        )


def _difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max().detach()) for a, b in pairs)


def main() -> None:
    """Starts both ranks."""
    parser = argparse.ArgumentParser(
        description='Gradients of two ranks: ours, sent during the backward pass or after it, and DDP.'
    )
    parser.add_argument('--anchors', default='deit_tiny,deit_small,deit_base')
    parser.add_argument('--steps', type=int, default=12, help='steps that are timed')
    parser.add_argument('--warmup', type=int, default=1, help='steps before them')
    parser.add_argument('--batch-size', type=int, default=1, help='images per step and rank')
    with tempfile.TemporaryDirectory() as folder:
        arguments = f'{folder}/store', parser.parse_args()
        torch.multiprocessing.start_processes(rank_of_two, arguments, WORLD, start_method='spawn')


if __name__ == '__main__':
    main()
