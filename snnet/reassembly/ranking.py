"""Ranks the assemblies within budgets: one block per equivalence set and per stage (DeRy, Eq. 8 to 11).

An assembly takes block k of some network at stage k, for k = 0 to K - 1, and no two blocks of one equivalence set:

    max over assemblies of their score,  with  sum of costs <= budget                             (Eq. 8 and 9)
    each equivalence set once (Eq. 10),  each stage once (Eq. 11)

Costs are sums over the blocks and the joins between them, so all N^K combinations are costed from small tables. The
score is a surrogate that needs no image: at each join, the similarity of what leaves one block to what the next block
receives in its own network, averaged over the joins. It favors few joins; the paper's own score (naswot.py) can rank
the best ones again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..budget.limits import checked_limit, infeasible
from ..errors import CannotStitch, SnnetError
from .assembly import Assembly
from .assembly_tables import AssemblyTables
from .combinations import Combinations, grow_combinations


@dataclass(frozen=True)
class Ranking:
    """Assemblies, best score first.

    Attributes:
        assemblies: the best ones that fit.
        feasible: how many of the costed ones fit.
        bound: no assembly that was left out of the search has a higher score; None if none was left out. The
            assemblies that reach the bound are the best of all.
    """

    assemblies: tuple[Assembly, ...]
    feasible: int
    bound: float | None


def rank_assemblies(
    tables: AssemblyTables,
    *,
    flops: float | None = None,
    params: float | None = None,
    count: int = 10,
    networks: int = 2,
    width: int = 50_000,
) -> Ranking:
    """The assemblies with the best scores within the budgets (Eq. 8 to 11).

    All combinations are costed as long as the beginnings of K - 1 stages number at most `width`, as for 24 networks
    and 4 stages. Otherwise, of the beginnings of equal length that can still fit, only the `width` with the highest
    upper bounds of the score are continued, and the ranking has a bound.

    Args:
        tables: costs and scores.
        flops: budget, an upper limit of multiply-adds per image; None means no limit.
        params: budget, an upper limit of parameters; None means no limit.
        count: largest number of assemblies to return.
        networks: smallest number of networks in an assembly; 1 includes whole networks.
        width: how many beginnings of assemblies are kept from stage to stage.

    Raises:
        InvalidBudget: a budget that is not a positive finite number.
        BudgetInfeasible: no assembly fits, or, where the message says so, none was found (with two budgets and more
            combinations than are costed). The message names the assembly that misses the budgets least.
        CannotStitch: no assembly exists, whatever the budget.
        SnnetError: another argument is out of range.
    """
    limits = np.array([budget_limit('flops', flops), budget_limit('params', params)])
    check_networks(networks, tables.partition.stages, len(tables.partition.networks))
    if count < 1 or width < 1:
        raise SnnetError(f'count and width must be at least 1, not count={count} and width={width}')
    network_of = tables.network_of
    sets = np.array(tables.partition.sets)[network_of].T  # (K, V)
    arguments = (tables.costs, tables.joins, tables.scores, sets, network_of, limits, networks, width)
    grown = grow_combinations(*arguments)
    if not len(grown.scores):
        grown = grow_combinations(*arguments, by_cost=True)
        if not len(grown.scores):
            raise CannotStitch(_why_none(tables, networks))
        missed = (grown.costs / limits).max(1)
        nearest = _assembly(tables, grown, int(np.lexsort((grown.costs[:, 0], missed))[0]))
        if missed.min() > 1:
            proven = grown.bound is None or -grown.bound >= missed.min()
            given = {name: limit for name, limit in (('flops', flops), ('params', params)) if limit is not None}
            asked = {name: checked_limit(name, limit) for name, limit in given.items()}
            costs = {name: float(getattr(nearest, name)) for name in asked}
            raise infeasible(f'no assembly {"has" if proven else "was found with"}', asked, str(nearest), costs)
        return Ranking((nearest,), 1, math.inf if grown.bound is not None else None)
    order = np.lexsort((grown.costs[:, 1], grown.costs[:, 0], -grown.scores))[:count]
    return Ranking(tuple(_assembly(tables, grown, int(i)) for i in order), len(grown.scores), grown.bound)


def _assembly(tables: AssemblyTables, grown: Combinations, index: int) -> Assembly:
    chosen = tables.network_of[grown.choices[index]]
    blocks = tuple(tables.partition.block(int(i), k) for k, i in enumerate(chosen))
    flops, params = grown.costs[index]
    return Assembly(blocks, int(flops), int(params), float(grown.scores[index]))


def check_networks(networks: int, stages: int, zoo: int) -> None:
    """Refuses a smallest number of networks that assemblies of K stages from a zoo cannot have.

    Raises:
        SnnetError: it is out of range.
    """
    if not 1 <= networks <= min(stages, zoo):
        raise SnnetError(
            f'an assembly of {stages} blocks from a zoo of {zoo} has 1 to {min(stages, zoo)} networks, not {networks}'
        )


def budget_limit(name: str, limit: float | None) -> float:
    """A budget as a number, infinite for None.

    Raises:
        InvalidBudget: it is not a positive finite number.
    """
    if limit is None:
        return math.inf
    number = checked_limit(name, limit)
    return float(math.floor(number)) if number >= 1 else float(number)  # costs are integers: rounding down is exact


def _why_none(tables: AssemblyTables, networks: int) -> str:
    different = tables.network_of[:, None] != tables.network_of  # (V, V)
    joined = all(np.isfinite(join[different]).any() for join in tables.joins[..., 0])
    if not joined:
        return 'no assembly of this zoo is possible: between two of the stages, no two of its networks can be joined'
    return (
        f'no assembly of {networks} or more networks takes one block of every equivalence set and of every stage '
        "(Eq. 10 and 11): partition with sets='stage', or ask for fewer networks"
    )
