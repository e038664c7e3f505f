from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch

import snnet
from snnet.anchors.flops import part_flops
from snnet.errors import BudgetInfeasible, CannotStitch, InvalidBudget, SnnetError
from snnet.reassembly import (
    Assembly,
    AssemblyTables,
    Partition,
    Similarity,
    draw_assemblies,
    draw_partition,
    draw_similarity,
    map_costs,
    rank_assemblies,
    reassemble,
    tabulate,
)
from snnet.stitching.stitch import Leg
from snnet.stitching.stitch_layer import StitchLayer
from tests.helpers.families import FAMILIES, shake, vit


def made_up(networks, stages, seed=0, free=False, holes=0.0):
    """Tables of random costs and scores; optionally with free sets and with joins that do not exist."""
    random = np.random.default_rng(seed)
    sets = random.integers(0, stages, (networks, stages)) if free else np.tile(np.arange(stages), (networks, 1))
    names = tuple(f'n{i}' for i in range(networks))
    centers = tuple(Leg('n0', k, k + 1) for k in range(stages))
    cuts = (tuple(range(stages + 1)),) * networks
    joins = random.integers(1, 50, (stages - 1, networks, networks, 2)).astype(float)
    joins[random.random(joins.shape[:3]) < holes] = np.inf
    scores = random.random(joins.shape[:3])
    joins[:, range(networks), range(networks)] = 0
    scores[:, range(networks), range(networks)] = 1
    costs = random.integers(1, 1000, (stages, networks, 2)).astype(float)
    partition = Partition(names, cuts, tuple(tuple(row) for row in sets.tolist()), centers, 0.0)
    return AssemblyTables(partition, costs, joins, scores)


def every_assembly(tables, networks=2):
    """(score, FLOPs, parameters, choice) of every assembly that keeps Eq. 10 and 11."""
    stages, zoo = tables.costs.shape[:2]
    found = []
    for choice in itertools.product(range(zoo), repeat=stages):
        sets = {tables.partition.sets[i][k] for k, i in enumerate(choice)}
        if len(sets) < stages or len(set(choice)) < networks:
            continue
        joins = [(k, a, b) for k, (a, b) in enumerate(itertools.pairwise(choice))]
        cost = sum(tables.costs[k, i] for k, i in enumerate(choice)) + sum(tables.joins[join] for join in joins)
        if np.isfinite(cost).all():
            score = sum(tables.scores[join] for join in joins) / (stages - 1)
            found.append((float(score), *cost.tolist(), choice))
    return sorted(found, key=lambda row: (-row[0], row[1], row[2]))


def costs_of(assembly):
    return assembly.score, assembly.flops, assembly.params


@pytest.mark.parametrize('networks', [1, 2, 3])
@pytest.mark.parametrize('seed', range(6))
def test_the_best_assemblies_are_those_of_brute_force(seed, networks):
    tables = made_up(6, 3, seed, free=bool(seed % 2), holes=0.2 * (seed % 3))
    fitting = [row for row in every_assembly(tables, networks) if row[1] <= 1500 and row[2] <= 1600]
    if not fitting:
        with pytest.raises((BudgetInfeasible, CannotStitch)):
            rank_assemblies(tables, flops=1500, params=1600, networks=networks)
        return
    ranking = rank_assemblies(tables, flops=1500, params=1600, networks=networks, count=5)
    assert (ranking.feasible, ranking.bound) == (len(fitting), None)
    assert [costs_of(a) for a in ranking.assemblies] == [pytest.approx(row[:3]) for row in fitting[:5]]
    for assembly, row in zip(ranking.assemblies, fitting, strict=False):
        assert [block.anchor for block in assembly.blocks] == [f'n{i}' for i in row[3]]


@pytest.mark.parametrize('width', [3, 20])
@pytest.mark.parametrize('seed', range(6))
def test_a_narrow_search_says_how_good_what_it_left_out_may_be(seed, width):
    tables = made_up(7, 4, seed)
    fitting = [row for row in every_assembly(tables) if row[1] <= 1800 and row[2] <= 2000]
    ranking = rank_assemblies(tables, flops=1800, params=2000, width=width, count=5)
    assert ranking.bound is not None
    returned = {costs_of(a)[1:] for a in ranking.assemblies}
    better = [row[0] for row in fitting if row[1:3] not in returned and row[0] > ranking.assemblies[-1].score + 1e-12]
    assert max(better, default=-1) <= ranking.bound + 1e-12
    for assembly, row in zip(ranking.assemblies, fitting, strict=False):
        if assembly.score >= ranking.bound:
            assert assembly.score == pytest.approx(row[0])


@pytest.mark.parametrize('seed', range(8))
def test_a_narrow_search_claims_infeasible_only_what_is(seed):
    tables = made_up(7, 4, seed)
    fitting = any(row[1] <= 1400 and row[2] <= 1500 for row in every_assembly(tables))
    try:
        found, said = rank_assemblies(tables, flops=1400, params=1500, width=2).assemblies[0], ''
    except BudgetInfeasible as error:
        found, said = None, str(error)
    assert not (fitting and 'no assembly has' in said)
    assert found is None or (found.flops <= 1400 and found.params <= 1500)


def test_all_combinations_of_24_networks_are_costed_in_well_under_a_second():
    tables = made_up(24, 4)
    started = time.process_time()
    ranking = rank_assemblies(tables, networks=1)
    assert time.process_time() - started < 2  # 0.3 s on an idle machine
    assert (ranking.feasible, ranking.bound) == (24**4, None)


@pytest.mark.parametrize('free', [False, True])
@pytest.mark.parametrize('limits', [{'flops': 300}, {'params': 200.0}, {'flops': 500, 'params': 300}])
def test_an_infeasible_budget_names_the_assembly_that_misses_it_least(limits, free):
    tables = made_up(6, 3, 2, free=free)
    columns = {'flops': 1, 'params': 2}
    missed, row = min(
        (max(row[columns[name]] / limit for name, limit in limits.items()), row) for row in every_assembly(tables)
    )
    assert missed > 1
    with pytest.raises(BudgetInfeasible, match=f'{missed:.3g} times the budget') as caught:
        rank_assemblies(tables, **limits)
    assert caught.value.smallest == {name: row[columns[name]] for name in limits}
    assert f'n{row[3][0]}[:' in str(caught.value)


@pytest.mark.parametrize('limits', [{'flops': 0}, {'flops': -1.0}, {'params': math.nan}, {'params': math.inf}])
def test_budgets_are_positive_finite_numbers(limits):
    with pytest.raises(InvalidBudget, match='positive finite number'):
        rank_assemblies(made_up(3, 3), **limits)


@pytest.mark.parametrize('options', [{'networks': 0}, {'networks': 4}, {'count': 0}, {'width': 0}])
def test_other_arguments_out_of_range_are_refused(options):
    with pytest.raises(SnnetError, match='to 3 networks, not|at least 1'):
        rank_assemblies(made_up(4, 3), **options)


def test_a_zoo_without_any_assembly_says_why():
    with pytest.raises(CannotStitch, match='no two of its networks can be joined'):
        rank_assemblies(made_up(4, 3, holes=1.0))
    tables = made_up(4, 3)
    alike = AssemblyTables(
        Partition(tables.partition.networks, tables.partition.cuts, ((0, 0, 1),) * 4, tables.partition.centers, 0.0),
        *(tables.costs, tables.joins, tables.scores),
    )
    with pytest.raises(CannotStitch, match="sets='stage'"):
        rank_assemblies(alike)


def test_blocks_that_follow_each_other_in_a_network_are_one_leg():
    blocks = (Leg('a', 0, 2), Leg('a', 2, 5), Leg('b', 3, 4), Leg('b', 6, 8))
    assembly = Assembly(blocks, 0, 0, 0.0)
    assert str(assembly) == 'a[:5] > b[3:4] > b[6:]'
    assert assembly.stitch == snnet.Stitch(assembly.legs, (0, 1))
    assert str(Assembly((Leg('a', 0, 2), Leg('a', 2, 3)), 0, 0, 0.0)) == 'a[:]'


def zoo():
    makers = {
        'cnn': FAMILIES['resnet'].small,
        'swin': FAMILIES['swin'].large,
        'vit': lambda: vit(16, img_size=64, patch_size=16),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [snnet.as_anchor(shake(make()), name, input_size=(3, 64, 64)) for name, make in makers.items()]


def example(anchors):
    """A partition of the small zoo into three blocks by hand, and a similarity."""
    cuts = ((0, 2, 4, 8), (0, 2, 5, 15), (0, 1, 2, 4))
    centers = tuple(Leg('cnn', a, b) for a, b in itertools.pairwise(cuts[0]))
    boundaries = tuple((a.name, p) for a in anchors for p in range(len(a.boundaries)))
    values = np.random.default_rng(0).random((len(boundaries),) * 2)
    partition = Partition(tuple(a.name for a in anchors), cuts, ((0, 1, 2),) * 3, centers, 1.0)
    return partition, Similarity(boundaries, (values + values.T) / 2)


@pytest.mark.slow  # seconds
def test_tables_hold_the_costs_of_real_networks_to_the_last_unit():
    anchors = zoo()
    partition, similarity = example(anchors)
    tables = tabulate(partition, anchors, similarity)
    for i, anchor in enumerate(anchors):
        assert tables.costs[:, i].sum(0).tolist() == [
            part_flops(anchor).whole,
            sum(p.numel() for p in anchor.parameters()),
        ]
    front, end = anchors[0].boundaries[4], anchors[1].boundaries[5]
    assert front.joins(end)
    layer = StitchLayer(front, end)
    assert tables.joins[1, 0, 1].tolist() == [layer.flops, sum(p.numel() for p in layer.parameters())]
    assert tables.scores[1, 0, 1] == similarity.between('cnn', 'swin')[4, 5]
    assert not tables.joins[:, range(3), range(3)].any()


@pytest.mark.slow
def test_new_stems_heads_and_layers_are_costed_as_told():
    anchors = zoo()
    partition, similarity = example(anchors)
    own = tabulate(partition, anchors, similarity)
    tables = tabulate(
        partition,
        anchors,
        similarity,
        join=lambda front, end: None if front.layout == 'NLC' else (front.channels, end.channels),
        stem=lambda boundary: (boundary.channels, 1),
        head=lambda anchor, boundary: (boundary.channels, 2),
    )
    for i, anchor in enumerate(anchors):
        counted = part_flops(anchor)
        first, last = (anchor.boundaries[position].channels for position in (0, -1))
        assert own.costs[2, i, 0] - tables.costs[2, i, 0] == counted.head - last
        if anchor.name == 'vit':  # behind a new stem there is no class token
            assert np.isinf(tables.costs[0, 2]).all()
            assert tables.costs[0, 3].tolist() == [own.costs[1, 3, 0] + first, own.costs[1, 3, 1] + 1]
            continue
        assert own.costs[0, i, 0] - tables.costs[0, i, 0] == counted.stem - first
    assert tables.joins[0, 0, 1].tolist() == [anchors[0].boundaries[2].channels, anchors[1].boundaries[2].channels]
    assert np.isinf(tables.joins[:, 2:, :2]).all()
    assert all(a.blocks[0].anchor != 'vit' for a in rank_assemblies(tables, count=100).assemblies)


def test_a_map_is_costed_on_the_smaller_grid():
    wide, narrow = snnet.Boundary(8, (16, 16), 'NCHW'), snnet.Boundary(5, (4, 4), 'NLC', 2)
    assert map_costs(wide, narrow) == (16 * 40, 45)
    assert map_costs(narrow, wide) == (16 * 40, 48)
    assert map_costs(narrow, narrow) == (18 * 25, 30)


def test_networks_that_are_not_in_the_zoo_are_named():
    anchors = zoo()
    partition, similarity = example(anchors)
    with pytest.raises(SnnetError, match='lacks vit of the partition'):
        tabulate(partition, anchors[:2], similarity)


@pytest.mark.slow  # a few seconds
def test_pictures_are_drawn(tmp_path):
    pytest.importorskip('matplotlib')
    anchors = zoo()
    partition, similarity = example(anchors)
    ranking = rank_assemblies(tabulate(partition, anchors, similarity), count=3)
    files = [
        *draw_similarity(similarity, tmp_path / 'zoo.v1', 'similarity'),
        *draw_partition(partition, tmp_path / 'partition'),
        *draw_assemblies(ranking.assemblies, partition, tmp_path / 'assemblies'),
    ]
    assert [file.name for file in files[:2]] == ['zoo.v1.png', 'zoo.v1.svg']
    assert all(file.stat().st_size > 1000 for file in files)


@pytest.mark.slow
def test_a_block_without_its_class_token_is_costed_as_it_runs():
    anchors = zoo()
    partition, similarity = example(anchors)
    tables = tabulate(partition, anchors, similarity)
    assert tables.network_of.tolist() == [0, 1, 2, 2]
    full, bare = tables.costs[1, 2:, 0]
    assert bare < full  # 16 tokens instead of 17
    for assembly in rank_assemblies(tables, count=1000, networks=1).assemblies:
        net = reassemble(assembly.legs, {anchor.name: anchor for anchor in anchors}, joins='plain', seed=1)
        assert sum(p.numel() for p in net.parameters()) == assembly.params
