from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from snnet.errors import CannotStitch, SnnetError
from snnet.reassembly.dynamic_program import DynamicProgram
from snnet.reassembly.partition import partition_zoo
from snnet.reassembly.partition_search import alternate, block_values, settle, swap_layers
from snnet.reassembly.similarity import Similarity
from snnet.stitching.stitch import Leg


def zoo(lengths, matrix):
    return Similarity(tuple((f'n{i}', p) for i, length in enumerate(lengths) for p in range(length + 1)), matrix)


def random_zoo(lengths, seed):
    count = sum(lengths) + len(lengths)
    values = np.random.default_rng(seed).random((count, count))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return zoo(lengths, values)


def nodes(lengths):
    return {f'n{i}': (1,) * length for i, length in enumerate(lengths)}


def random_sizes(lengths, seed):
    random = np.random.default_rng(seed)
    return {f'n{i}': tuple(random.integers(1, 9, length).tolist()) for i, length in enumerate(lengths)}


def all_cuts(size, blocks, epsilon):
    """Every way to cut one network below the size limit of Eq. 5."""
    inner = itertools.combinations(range(1, len(size)), blocks - 1)
    found = []
    for cuts in ((0, *cut, len(size)) for cut in inner):
        parts = [sum(size[a:b]) for a, b in itertools.pairwise(cuts)]
        if all(part * blocks < (1 + epsilon) * sum(size) for part in parts):
            found.append(cuts)
    return found


def brute_force(similarity, blocks, sizes, epsilon, sets):
    """The largest J over all partitions and, where sets are free, over all choices of centers among the blocks."""
    options = [all_cuts(sizes[name], blocks, epsilon) for name in similarity.positions]
    first = [similarity.span(name).start for name in similarity.positions]
    best = -np.inf
    for chosen in itertools.product(*options):
        rows = np.array([(f + a, f + b) for f, c in zip(first, chosen, strict=True) for a, b in itertools.pairwise(c)])
        s = similarity.matrix[np.ix_(rows[:, 0], rows[:, 0])] + similarity.matrix[np.ix_(rows[:, 1], rows[:, 1])]
        if sets == 'stage':
            best = max(best, sum(s[k::blocks, k::blocks].sum(1).max() for k in range(blocks)))
        else:
            centers = np.array(list(itertools.combinations(range(len(s)), blocks)))
            best = max(best, s[centers].max(1).sum(1).max())
    return best


def objective(similarity, found):
    """J by its definition (Eq. 2)."""
    return sum(
        similarity.functional(found.block(i, k), found.centers[which])
        for i, sets in enumerate(found.sets)
        for k, which in enumerate(sets)
    )


@pytest.mark.quick(
    'lengths0-3-1.0-stage-0',
    'lengths1-2-0.4-free-0',
    'lengths1-2-0.4-stage-1',
    'lengths2-4-1.2-free-2',
    'lengths2-4-1.2-stage-0',
)
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('sets', ['free', 'stage'])
@pytest.mark.parametrize(('lengths', 'blocks', 'epsilon'), [((5, 4, 6), 3, 1.0), ((7, 6), 2, 0.4), ((4, 6), 4, 1.2)])
def test_small_zoos_are_partitioned_as_by_brute_force(lengths, blocks, epsilon, sets, seed):
    similarity, sizes = random_zoo(lengths, seed), random_sizes(lengths, seed)
    if not all(all_cuts(size, blocks, epsilon) for size in sizes.values()):
        with pytest.raises(CannotStitch):
            partition_zoo(similarity, blocks, sizes, epsilon=epsilon, sets=sets)
        return
    found = partition_zoo(similarity, blocks, sizes, epsilon=epsilon, sets=sets)
    assert found.objective == pytest.approx(brute_force(similarity, blocks, sizes, epsilon, sets), abs=1e-9)


@pytest.mark.quick('1-alternating-free', '0-alternating-stage')
@pytest.mark.parametrize('sets', ['free', 'stage'])
@pytest.mark.parametrize('method', ['alternating', 'published'])
@pytest.mark.parametrize('seed', range(2))
def test_a_partition_is_what_it_says(method, sets, seed):
    lengths = (7, 9, 6, 8)
    similarity, sizes = random_zoo(lengths, seed), random_sizes(lengths, seed)
    found = partition_zoo(similarity, 4, sizes, epsilon=0.9, sets=sets, method=method, starts=10)
    assert found.objective == pytest.approx(objective(similarity, found), abs=1e-9)
    for name, cuts in zip(found.networks, found.cuts, strict=True):
        assert cuts in all_cuts(sizes[name], 4, 0.9)
    if sets == 'stage':
        assert set(found.sets) == {(0, 1, 2, 3)}
    if method == 'alternating':
        for j, center in enumerate(found.centers):
            members = found.members(j)
            totals = {leg: sum(similarity.functional(other, leg) for other in members) for leg in members}
            assert totals[center] == pytest.approx(max(totals.values()), abs=1e-9)
        for i, own in enumerate(found.sets if sets == 'free' else ()):
            for k, which in enumerate(own):
                to = [similarity.functional(found.block(i, k), center) for center in found.centers]
                assert to[which] == pytest.approx(max(to), abs=1e-9)


@pytest.mark.parametrize('free', [True, False])
@pytest.mark.parametrize('pinned', [True, False])
def test_given_centers_the_dynamic_programme_finds_the_best_cuts(free, pinned):
    lengths, blocks = (8, 6, 7), 3
    similarity, sizes = random_zoo(lengths, 5), random_sizes(lengths, 5)
    program = DynamicProgram(similarity, blocks, sizes, 0.8)
    centers = np.array([[1, 4], [10, 12], [4, 6]])
    cuts, sums = program.best(block_values(program, centers, free, pinned))
    legs = [program.leg(*center) for center in centers]
    for i, name in enumerate(program.names):
        values = {}
        for option in all_cuts(sizes[name], blocks, 0.8):
            own = [Leg(name, a, b) for a, b in itertools.pairwise(option)]
            kept = [own.index(leg) if leg in own else None for leg in legs]
            needed = [k for k, leg in enumerate(legs) if leg.anchor == name]
            if pinned and any(kept[k] is None or (kept[k] != k and not free) for k in needed):
                continue
            to = [[similarity.functional(block, leg) for leg in legs] for block in own]
            values[option] = sum(max(row) if free else row[k] for k, row in enumerate(to))
        if not values:
            assert sums[i] == -np.inf
            continue
        assert sums[i] == pytest.approx(max(values.values()), abs=1e-12)
        assert values[tuple((cuts[i] - program.first[i]).tolist())] == pytest.approx(sums[i], abs=1e-12)


@pytest.mark.parametrize('free', [True, False])
@pytest.mark.parametrize('seed', [0, 1, 21, 39])  # of the last two, an end needs centers to be kept
def test_no_exact_step_increases_the_objective_of_an_end(free, seed):
    lengths = (9, 12, 7, 10)
    program = DynamicProgram(random_zoo(lengths, seed), 3, nodes(lengths), 0.9)
    end = alternate(program, free, np.random.default_rng(seed))
    for pinned in (False, True):
        cuts, sums = program.best(block_values(program, end.centers, free, pinned))
        settled = settle(program, cuts, end.centers, free)
        assert settled is None or settled.objective <= end.objective + 1e-9
    assert sums.sum() == pytest.approx(end.objective, abs=1e-9)  # the best cuts with its centers are its own


def test_a_layer_swap_moves_a_cut_by_one_module_to_where_it_is_best_within_the_limit():
    matrix = np.zeros((14, 14))
    matrix[[2, 3, 4, 5], 10] = matrix[10, [2, 3, 4, 5]] = [0.1, 0.2, 0.5, 0.9]
    program = DynamicProgram(zoo((6, 6), matrix), 2, nodes((6, 6)), 0.5)
    cuts, centers = np.array([[0, 2, 6], [7, 10, 13]]), np.array([[7, 10], [10, 13]])
    for expected in (3, 4, 4):  # five modules would be more than the limit of less than 4.5
        swap_layers(program, cuts, np.array([[0, 1], [0, 1]]), centers)
        assert cuts[0].tolist() == [0, expected, 6]


def test_no_set_of_given_cuts_is_left_empty_or_without_its_center():
    similarity = zoo((4, 4), np.ones((10, 10)))  # all blocks are alike: every tie there is
    program = DynamicProgram(similarity, 2, nodes((4, 4)), 0.5)
    cuts = np.array([[0, 2, 4], [5, 7, 9]])
    assert settle(program, cuts, np.array([[0, 1], [1, 3]]), True) is None  # of these centers, one takes all
    state = settle(program, cuts, np.array([[0, 2], [7, 9]]), True)
    assert np.bincount(state.sets).tolist() == [3, 1]
    found = partition_zoo(similarity, 2, nodes((4, 4)), epsilon=0.5)
    assert all(found.centers[j] in found.members(j) for j in range(2))
    assert found.objective == 8


@pytest.mark.slow_for('0-stage')
@pytest.mark.quick('0-stage', '0-free')
@pytest.mark.parametrize('sets', ['free', 'stage'])
@pytest.mark.parametrize('seed', range(2))
def test_a_planted_zoo_is_partitioned_exactly(sets, seed):
    random = np.random.default_rng(seed)
    lengths, stages = (9, 14, 11, 8, 12), 4
    cuts, features = [], []
    levels = np.linalg.qr(random.normal(size=(64, stages + 1)))[0].T
    for length in lengths:
        inner = sorted(random.choice(np.arange(1, length), stages - 1, replace=False).tolist())
        cuts.append((0, *inner, length))
        line = random.normal(size=(length + 1, 64)) / 8
        line[list(cuts[-1])] = levels + 0.05 * random.normal(size=levels.shape)
        features.append(line / np.linalg.norm(line, axis=1, keepdims=True))
    rows = np.concatenate(features)
    found = partition_zoo(zoo(lengths, (rows @ rows.T) ** 2), stages, nodes(lengths), epsilon=3, sets=sets)
    assert found.cuts == tuple(cuts)
    assert found.sets == ((0, 1, 2, 3),) * len(lengths)


@pytest.mark.parametrize('sets', ['free', 'stage'])
def test_a_large_zoo_is_partitioned_better_than_as_published_in_well_under_a_second(sets):
    lengths = np.random.default_rng(0).integers(8, 28, 24).tolist()
    similarity = random_zoo(lengths, 1)
    started = time.process_time()
    found = partition_zoo(similarity, 4, nodes(lengths), epsilon=0.6, sets=sets)
    assert time.process_time() - started < 2  # 0.2 s on an idle machine
    published = partition_zoo(similarity, 4, nodes(lengths), epsilon=0.6, sets=sets, method='published', starts=40)
    assert found.objective > published.objective


def test_the_seed_alone_decides_and_every_start_is_told():
    lengths, told = (9, 12, 7, 10), []
    similarity = random_zoo(lengths, 0)
    first = partition_zoo(similarity, 3, nodes(lengths), epsilon=0.9, starts=3, seed=5, progress=told.append)
    np.random.default_rng().random()
    assert partition_zoo(similarity, 3, nodes(lengths), epsilon=0.9, starts=3, seed=5) == first
    assert told == [1, 1, 1]


def test_the_size_limit_is_strict_and_exact():
    lengths = (10, 8)
    with pytest.raises(CannotStitch, match=r'below 1.2/4 of its network: .* n0 \(epsilon above 0.2\); raise'):
        partition_zoo(random_zoo(lengths, 0), 4, nodes(lengths), epsilon=0.2)
    partition_zoo(random_zoo(lengths, 0), 4, nodes(lengths), epsilon=0.2001)


def test_every_network_that_misses_the_limit_is_named_with_what_it_needs():
    lengths = (5, 6, 8)
    sizes = {'n0': (1, 1, 1, 1, 16), 'n1': (1,) * 6, 'n2': (1, 1, 1, 1, 1, 1, 1, 3)}
    with pytest.raises(CannotStitch, match=r'n0 \(epsilon above 2.2\), n1 \(epsilon above 0.333\), n2 \(epsilon'):
        partition_zoo(random_zoo(lengths, 0), 4, sizes, epsilon=0)
    with pytest.raises(CannotStitch, match=r'by n0 \(epsilon above 2.2\); raise'):
        partition_zoo(random_zoo(lengths, 0), 4, sizes, epsilon=0.4)
    partition_zoo(random_zoo(lengths, 0), 4, sizes, epsilon=2.21)


@pytest.mark.parametrize(
    ('lengths', 'blocks', 'options', 'sentence'),
    [
        ((6,), 2, {}, 'at least two networks to take blocks from, 1 given'),
        ((6, 3, 8), 4, {}, 'n1 has 3 modules on its line: it cannot be cut into 4 blocks'),
        ((6, 6), 1, {}, 'at least 2 blocks, not 1'),
        ((6, 6), 3, {'epsilon': -0.1}, 'epsilon must be zero or a positive finite number, not -0.1'),
        ((6, 6), 3, {'epsilon': float('nan')}, 'epsilon'),
        ((6, 6), 3, {'epsilon': float('inf')}, 'epsilon'),
        ((6, 6), 3, {'sets': 'any'}, "sets must be one of free, stage, not 'any'"),
        ((6, 6), 3, {'method': 'best'}, "one of alternating, published, not 'best'"),
        ((6, 6), 3, {'starts': 0}, 'at least one start'),
    ],
)
def test_bad_input_gets_a_sentence(lengths, blocks, options, sentence):
    with pytest.raises(SnnetError, match=sentence):
        partition_zoo(random_zoo(lengths, 0), blocks, nodes(lengths), **options)


@pytest.mark.parametrize('sizes', [{'n0': (1,) * 6}, {'n0': (1,) * 6, 'n1': (1,) * 5}, {'n0': (0,) * 6}])
def test_sizes_that_do_not_belong_to_the_lines_are_refused(sizes):
    with pytest.raises(SnnetError, match=r'n[01] needs a size for each of its 6 modules'):
        partition_zoo(random_zoo((6, 6), 0), 3, sizes)
