"""Reassembly: a block of every equivalence set and every stage, under budgets (DeRy, Eq. 8 to 11).

An assembly takes block k of some network at stage k, for k = 0 to K - 1, and no two blocks of one equivalence set. Its
costs are sums over the blocks and over the seams between them, so all N^K combinations are costed from small tables.
They are ranked by a surrogate that needs no image: the similarity of what leaves a block to what the next one is used
to be fed, averaged over the seams. It favors few seams; the paper's own score (naswot.py) can rank the best anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..anchors.flops import PartFlops, part_flops
from ..errors import BudgetInfeasible, CannotStitch, InvalidBudget, SnnetError
from ..stitching.stitch import Leg, Stitch
from .combinations import Grown, grow
from .partition import Partition
from .similarity import Similarity
from .zoo import leg_params

SeamCosts = Callable[[Boundary, Boundary], tuple[int, int] | None]
"""FLOPs and parameters of the stitch layer from one boundary to another, or None where there is none."""
EndCosts = Callable[[Boundary], tuple[int, int]]
"""FLOPs and parameters of a new stem that leads to a boundary, or of a new head that starts from one."""


@dataclass(frozen=True)
class Assembly:
    """A network made of blocks of a zoo.

    Attributes:
        blocks: one a stage, with the positions between which it lies.
        flops: multiply-adds an image.
        params: parameters.
        score: mean over the seams of the similarity of the two boundaries that meet there; blocks that follow each
            other in their own network count 1.
    """

    blocks: tuple[Leg, ...]
    flops: int
    params: int
    score: float

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The blocks as legs from the image to the logits; blocks that follow each other in a network are one leg."""
        legs = [self.blocks[0]]
        for block in self.blocks[1:]:
            if block.anchor == legs[-1].anchor and block.start == legs[-1].stop:
                legs[-1] = Leg(block.anchor, legs[-1].start, block.stop)
            else:
                legs.append(block)
        legs[0] = Leg(legs[0].anchor, None, legs[0].stop)
        legs[-1] = Leg(legs[-1].anchor, legs[-1].start, None)
        return tuple(legs)

    @property
    def stitch(self) -> Stitch:
        """The assembly as the only stitch of a net, with a stitch layer of its own at each seam."""
        return Stitch(self.legs, tuple(range(len(self.legs) - 1)))

    def __str__(self) -> str:
        return ' > '.join(map(str, self.legs))


@dataclass(frozen=True)
class Ranking:
    """Assemblies from the best score down.

    Attributes:
        assemblies: the best ones that fit.
        feasible: how many fit, of those that were costed.
        bound: no assembly that was left out of the search has a higher score; None where none was left out. The
            assemblies that reach the bound are the best of all.
    """

    assemblies: tuple[Assembly, ...]
    feasible: int
    bound: float | None


@dataclass(frozen=True, eq=False)
class Tables:
    """What every assembly is costed and scored from; N networks, K stages.

    Attributes:
        partition: whose blocks are assembled.
        costs: FLOPs and parameters of each block (K, N, 2), stem and head included.
        seams: the same of each stitch layer between stages (K - 1, N, N, 2), front by end; inf where there is none.
        scores: similarity at each seam (K - 1, N, N).
    """

    partition: Partition
    costs: np.ndarray
    seams: np.ndarray
    scores: np.ndarray


def map_costs(front: Boundary, end: Boundary) -> tuple[int, int]:
    """Costs of a plain 1x1 map with bias on the smaller of the two grids; resampling to the other counts nothing.

    Prefix tokens are mapped where both sides have as many, and left out elsewhere.
    """
    cells = min(math.prod(front.grid), math.prod(end.grid))
    tokens = cells + (front.prefix if front.prefix == end.prefix else 0)
    return tokens * front.channels * end.channels, (front.channels + 1) * end.channels


def tabulate(
    partition: Partition,
    anchors: Sequence[Anchor],
    similarity: Similarity,
    *,
    seam: SeamCosts = map_costs,
    stem: EndCosts | None = None,
    head: EndCosts | None = None,
    parts: Mapping[str, PartFlops] | None = None,
) -> Tables:
    """Costs and scores of every block and every seam.

    Every block is costed on the grid that it has in its own network, as it is where features are resampled to it.

    Args:
        partition: of the zoo.
        anchors: the zoo.
        similarity: of all boundaries.
        seam: costs of a stitch layer. Blocks that follow each other in their own network need none.
        stem: costs of a new stem, by what it leads to; by default an assembly has the stem of its first block's
            network.
        head: costs of a new head, by what it starts from; by default the head of its last block's network.
        parts: `part_flops` of the networks by name, where they were counted before.

    Raises:
        SnnetError: a network of the partition is not among the anchors.
    """
    by_name = {anchor.name: anchor for anchor in anchors}
    missing = [name for name in partition.networks if name not in by_name]
    if missing:
        raise SnnetError(f'the zoo of {", ".join(by_name)} lacks {", ".join(missing)} of the partition')
    counted = parts or {name: part_flops(by_name[name]) for name in partition.networks}
    networks, stages = len(partition.networks), partition.stages
    costs = np.zeros((stages, networks, 2))
    seams = np.full((stages - 1, networks, networks, 2), np.inf)
    scores = np.zeros((stages - 1, networks, networks))
    at = [[by_name[name].boundaries[cut] for cut in partition.cuts[i]] for i, name in enumerate(partition.networks)]
    for i, name in enumerate(partition.networks):
        anchor = by_name[name]
        for k in range(stages):
            block = partition.block(i, k)
            first, last = k == 0 and stem is None, k == stages - 1 and head is None
            leg = Leg(name, None if first else block.start, None if last else block.stop)
            flops = counted[name].of_run(leg.start, leg.stop, anchor.official)
            costs[k, i] = flops, leg_params(anchor, leg.start, leg.stop)
        for k, new in ((0, stem), (-1, head)):
            if new is not None:
                costs[k, i] += new(at[i][k])
        for j, other in enumerate(partition.networks):
            cuts = partition.cuts[i][1:-1], partition.cuts[j][1:-1]
            scores[:, i, j] = similarity.between(name, other)[cuts]
            for k in range(stages - 1):
                found = (0, 0) if i == j else seam(at[i][k + 1], at[j][k + 1])
                if found is not None:
                    seams[k, i, j] = found
    return Tables(partition, costs, seams, scores)


def rank_assemblies(
    tables: Tables,
    *,
    flops: float | None = None,
    params: float | None = None,
    count: int = 10,
    networks: int = 2,
    width: int = 50_000,
) -> Ranking:
    """The assemblies with the best scores within the budgets (Eq. 8 to 11).

    All combinations are costed where those of all stages but the last are no more than `width`: 24 networks and 4
    stages are. Beyond, of the beginnings of equal length that can still fit, only the `width` with the highest upper
    bounds of the score go on; the ranking then has a bound.

    Args:
        tables: costs and scores.
        flops, params: budgets: upper limits of multiply-adds and of parameters; None means no limit.
        count: how many assemblies to return at most.
        networks: from how many networks, at least, an assembly takes its blocks; 1 lets whole networks take part.
        width: how many beginnings of assemblies go on from stage to stage.

    Raises:
        InvalidBudget: a budget that is no positive finite number.
        BudgetInfeasible: no assembly fits, or none was found where the message says so (with two budgets, and more
            combinations than are costed); it names the one that misses the budgets least.
        CannotStitch: there is no assembly at all, whatever the budget.
        SnnetError: another argument is out of range.
    """
    limits = np.array([_limit('flops', flops), _limit('params', params)])
    stages, zoo = tables.costs.shape[:2]
    if not 1 <= networks <= min(stages, zoo):
        raise SnnetError(
            f'an assembly of {stages} blocks from a zoo of {zoo} has 1 to {min(stages, zoo)} networks, not {networks}'
        )
    if count < 1 or width < 1:
        raise SnnetError(f'count and width are at least 1, but count={count} and width={width} were asked for')
    sets = np.array(tables.partition.sets).T
    arguments = (tables.costs, tables.seams, tables.scores, sets, limits, networks, width)
    grown = grow(*arguments)
    if not len(grown.scores):
        grown = grow(*arguments, by_cost=True)
        if not len(grown.scores):
            raise CannotStitch(_none(tables, networks))
        missed = (grown.costs / limits).max(1)
        nearest = _assembly(tables, grown, int(np.lexsort((grown.costs[:, 0], missed))[0]))
        if missed.min() > 1:
            proven = grown.bound is None or -grown.bound >= missed.min()
            raise _infeasible(nearest, flops, params, proven)
        return Ranking((nearest,), 1, math.inf if grown.bound is not None else None)
    order = np.lexsort((grown.costs[:, 1], grown.costs[:, 0], -grown.scores))[:count]
    return Ranking(tuple(_assembly(tables, grown, int(i)) for i in order), len(grown.scores), grown.bound)


def _assembly(tables: Tables, grown: Grown, index: int) -> Assembly:
    blocks = tuple(tables.partition.block(int(i), k) for k, i in enumerate(grown.choices[index]))
    flops, params = grown.costs[index]
    return Assembly(blocks, int(flops), int(params), float(grown.scores[index]))


def _limit(name: str, limit: float | None) -> float:
    if limit is None:
        return math.inf
    number = float(limit) if isinstance(limit, Real) and not isinstance(limit, bool) else math.nan
    if not 0 < number < math.inf:
        raise InvalidBudget(f'a budget is a positive finite number, but {name}={limit!r} was asked for')
    return number


def _none(tables: Tables, networks: int) -> str:
    joined = all(np.isfinite(seam[~np.eye(len(seam), dtype=bool)]).any() for seam in tables.seams[..., 0])
    if not joined:
        return 'no assembly of this zoo is possible: between two stages, no stitch layer joins two of its networks'
    return (
        f'no assembly of {networks} or more networks takes one block of every equivalence set and of every stage '
        "(Eq. 10 and 11): partition with sets='stage', or ask for fewer networks"
    )


def _infeasible(nearest: Assembly, flops: float | None, params: float | None, proven: bool) -> BudgetInfeasible:
    asked = {name: limit for name, limit in (('flops', flops), ('params', params)) if limit is not None}
    wanted = ' and '.join(f'{name} <= {limit:.6g}' for name, limit in asked.items())
    smallest = {name: float(getattr(nearest, name)) for name in asked}
    offered = ' and '.join(f'{name} = {value:.6g}' for name, value in smallest.items())
    missed = max(smallest[name] / limit for name, limit in asked.items())
    return BudgetInfeasible(
        f'no assembly {"has" if proven else "was found with"} {wanted}: the nearest, {nearest}, has {offered}, '
        f'{missed:.3g} times the budget',
        smallest,
    )
