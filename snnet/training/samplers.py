"""What chooses the stitch to train next: a function of seed, step, turn and rank, so that nothing needs to be saved."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..config.sections import option
from ..errors import SnnetError, did_you_mean
from ..net.stitchable_net import StitchableNet
from ..utils.seeds import generator

SAMPLERS = ('uniform', 'stratified', 'flops', 'log_flops', 'anchors', 'sandwich')
_ROUND = 4
"""Draws of a sandwich: the largest, the smallest and two others, as slimmable networks train them."""


@dataclass
class SamplingSettings:
    """Which stitch is trained next."""

    sampler: str = option('uniform', 'what draws stitches: uniform, stratified, flops, log_flops, anchors or sandwich')
    sampler_width: float = option(0.05, 'width of a bin of (log) FLOPs, as a share of the span of all stitches')
    sampler_anchors: float = option(0.3, 'probability of an anchor, with the sampler of that name')
    stitches_per_step: int = option(1, 'stitches trained on each batch', least=1, most=1000)
    stitch_per_rank: bool = option(False, 'train a different stitch on every process (the slowest sets the pace)')


@dataclass(frozen=True)
class Sampler(ABC):
    """Draws the stitches of a run.

    Attributes:
        seed: of the run.
        per_rank: whether every rank trains a different stitch.
        per_step: stitches per step.
    """

    seed: int
    per_rank: bool
    per_step: int

    def __call__(self, step: int, rank: int = 0, turn: int = 0) -> int:
        """The id of the stitch that a rank trains in a turn (from 0 to `per_step` - 1) of a step."""
        return self._draw(step * self.per_step + turn, rank if self.per_rank else 0)

    @abstractmethod
    def _draw(self, number: int, rank: int) -> int:
        """The draw with this number; each is independent of how the draws before it went."""


@dataclass(frozen=True)
class GroupSampler(Sampler):
    """Draws a group by its weight, then one of its stitches, each equally often.

    Attributes:
        groups: ids; one group is SN-Net's uniform sampling (Algorithm 1, line 5).
        weights: of each group, in any unit; equal ones by default.
    """

    groups: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = ()

    def _draw(self, number: int, rank: int) -> int:
        first, second = torch.rand(2, dtype=torch.float64, generator=generator(self.seed, 'stitch', number, rank))
        edges = list(accumulate(self.weights or [1] * len(self.groups)))
        group = self.groups[bisect_right(edges, float(first) * edges[-1])]
        return group[int(float(second) * len(group))]


@dataclass(frozen=True)
class StratifiedSampler(Sampler):
    """Draws every stitch once before any comes again, in a new order for each pass.

    Attributes:
        stitches: ids.
    """

    stitches: tuple[int, ...]

    def _draw(self, number: int, rank: int) -> int:
        turn, place = divmod(number, len(self.stitches))
        order = torch.randperm(len(self.stitches), generator=generator(self.seed, 'stitches', turn, rank))
        return self.stitches[int(order[place])]


@dataclass(frozen=True)
class SandwichSampler(Sampler):
    """Draws the largest, the smallest, then others, and so on: within a step if it has three turns, else across steps.

    (The sandwich rule of universally slimmable networks, Yu and Huang, 2019.)

    Attributes:
        largest, smallest: ids.
        others: draws what comes between.
    """

    largest: int
    smallest: int
    others: Sampler

    def _draw(self, number: int, rank: int) -> int:
        place = number % (self.per_step if self.per_step > 2 else _ROUND)
        return (self.largest, self.smallest)[place] if place < 2 else self.others._draw(number, rank)


def make_sampler(settings: SamplingSettings, net: StitchableNet, stitches: Sequence[int], seed: int) -> Sampler:
    """The sampler that the settings name.

    - 'uniform': every stitch equally often (SN-Net).
    - 'stratified': every stitch exactly once in as many draws as there are stitches.
    - 'flops': a bin of FLOPs, then a stitch of it (SN-Netv2's resource-constrained sampling); 'log_flops' bins their
      logarithm. `sampler_width` is the width of a bin as a share of the span from the cheapest stitch to the costliest.
    - 'anchors': with probability `sampler_anchors` an anchor, otherwise another stitch.
    - 'sandwich': the largest anchor, the smallest, then two or more others (where anchors are frozen: the costliest
      and the cheapest stitch).

    Args:
        settings: which sampler, and how it draws.
        net: whose records hold the FLOPs of every stitch.
        stitches: ids to train.
        seed: of the draws.

    Raises:
        SnnetError: an unknown name, a setting out of range, FLOPs that are not known, or no anchor to draw.
    """
    if settings.sampler not in SAMPLERS:
        near = did_you_mean(settings.sampler, SAMPLERS)
        raise SnnetError(f"sampler is one of {', '.join(SAMPLERS)}, not '{settings.sampler}'{near}")
    common = seed, settings.stitch_per_rank, settings.stitches_per_step
    ids = tuple(stitches)
    if settings.sampler == 'stratified':
        return StratifiedSampler(*common, ids)
    anchors = tuple(i for i in ids if net.records[i].anchor)
    if settings.sampler == 'anchors':
        share = settings.sampler_anchors
        if not 0 < share < 1:
            raise SnnetError(f'sampler_anchors is a probability above 0 and below 1, not {share}')
        if not anchors:
            raise SnnetError("sampler 'anchors' draws anchors, which freeze_anchors takes out: choose another sampler")
        return GroupSampler(*common, (anchors, tuple(i for i in ids if i not in anchors)), (share, 1 - share))
    uniform = GroupSampler(*common, (ids,))
    if settings.sampler == 'uniform':
        return uniform
    flops = {i: _flops_of(net, i) for i in ids}
    if settings.sampler == 'sandwich':
        ends = sorted(anchors or ids, key=lambda i: flops[i])
        return SandwichSampler(*common, ends[-1], ends[0], uniform)
    costs = flops if settings.sampler == 'flops' else {i: math.log(value) for i, value in flops.items()}
    return GroupSampler(*common, bins(costs, settings.sampler_width))


def bins(costs: dict[int, float], width: float) -> tuple[tuple[int, ...], ...]:
    """Ids in bins of their cost, from cheap to expensive.

    A new bin begins where the gap to the first member of the last one exceeds the width.

    Args:
        costs: by id.
        width: as a share of the span from the least cost to the greatest.

    Raises:
        SnnetError: the width is not a number from 0 to 1.
    """
    if not 0 <= width <= 1:
        raise SnnetError(f'sampler_width is a share of the span of costs, from 0 to 1, not {width}')
    limit = width * (max(costs.values()) - min(costs.values()))
    found: list[list[int]] = []
    for i in sorted(costs, key=lambda i: costs[i]):
        if not found or costs[i] - costs[found[-1][0]] > limit:
            found.append([])
        found[-1].append(i)
    return tuple(map(tuple, found))


def _flops_of(net: StitchableNet, stitch: int) -> float:
    flops = net.records[stitch].flops
    if flops is None:
        raise SnnetError(f'the FLOPs of stitch {stitch} are not known: measure_costs(net) counts them')
    return flops
