"""What the samplers draw: frequencies by chi-squared, bins by hand, and nothing but the key decides."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from snnet import Record, SnnetError
from snnet.training.samplers import SAMPLERS, SamplingSettings, bins, make_sampler

DRAWS = 4000
# the published GFLOPs of the 71 stitches of DeiT-Ti/S/B, sorted
DEIT = [
    *(1.26, 1.55, 1.65, 1.83, 1.93, 2.03, 2.10, 2.21, 2.31, 2.38, 2.48, 2.58, 2.66, 2.76, 2.86, 2.93, 3.04, 3.14),
    *(3.21, 3.31, 3.41, 3.49, 3.59, 3.69, 3.76, 3.87, 3.97, 4.04, 4.14, 4.24, 4.32, 4.42, 4.52, 4.61, 4.70, 4.80),
    *(5.74, 6.12, 6.82, 7.20, 7.58, 7.90, 8.27, 8.65, 8.97, 9.35, 9.73, 10.05, 10.43, 10.81, 11.12, 11.50, 11.88),
    *(12.20, 12.58, 12.96, 13.28, 13.66, 14.04, 14.35, 14.73, 15.11, 15.43, 15.81, 16.19, 16.51, 16.89, 17.26, 17.58),
    *(17.96, 18.34),
]


def net_of(*flops, anchors=(0, 1)):
    return SimpleNamespace(records=[Record(i, '', flops=f, anchor=i in anchors) for i, f in enumerate(flops)])


NET = net_of(100, 900, 120, 150, 400, 410, 950)  # stitch 6 is dearer than the larger anchor
IDS = range(len(NET.records))


def sampler(name, net=NET, ids=None, **settings):
    seed = settings.pop('seed', 0)
    ids = range(len(net.records)) if ids is None else ids
    return make_sampler(SamplingSettings(sampler=name, **settings), net, ids, seed)


def assert_drawn_as_expected(draw, expected):
    """Frequencies deviate no more than 99.9 % of true samples do."""
    counts = dict.fromkeys(expected, 0)
    for step in range(DRAWS):
        counts[draw(step)] += 1
    chi_squared = sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in expected.items())
    assert chi_squared < {5: 20.5, 6: 22.5}[len(expected) - 1], counts


@pytest.mark.parametrize(
    ('name', 'settings', 'expected'),
    [
        ('uniform', {}, dict.fromkeys(IDS, 1 / 7)),
        ('flops', {'sampler_width': 0.1}, {0: 1 / 9, 2: 1 / 9, 3: 1 / 9, 4: 1 / 6, 5: 1 / 6, 1: 1 / 6, 6: 1 / 6}),
        ('flops', {'sampler_width': 1.0}, dict.fromkeys(IDS, 1 / 7)),
        ('flops', {'sampler_width': 0.0}, dict.fromkeys(IDS, 1 / 7)),
        ('log_flops', {'sampler_width': 0.1}, {0: 1 / 8, 2: 1 / 8, 3: 1 / 4, 4: 1 / 8, 5: 1 / 8, 1: 1 / 8, 6: 1 / 8}),
        ('anchors', {'sampler_anchors': 0.6}, {0: 0.3, 1: 0.3, **dict.fromkeys(IDS[2:], 0.08)}),
        ('sandwich', {}, {0: 0.25 + 0.5 / 7, 1: 0.25 + 0.5 / 7, **dict.fromkeys(IDS[2:], 0.5 / 7)}),
    ],
)
def test_stitches_are_drawn_as_often_as_the_rule_says(name, settings, expected):
    assert_drawn_as_expected(sampler(name, **settings), expected)


@pytest.mark.parametrize('turns', [1, 4])
def test_frequencies_hold_over_turns_and_ranks_too(turns):
    draw = sampler('uniform', stitch_per_rank=True, stitches_per_step=turns)
    assert_drawn_as_expected(lambda i: draw(i // 8, rank=i % 8 // turns, turn=i % turns), dict.fromkeys(IDS, 1 / 7))


def test_a_bin_ends_where_the_gap_to_its_first_member_exceeds_the_width():
    costs = dict(enumerate([10.0, 0.0, 1.0, 2.0, 3.0, 3.5, 9.0]))
    assert bins(costs, 0.2) == ((1, 2, 3), (4, 5), (6, 0))
    assert bins(costs, 0.1) == ((1, 2), (3, 4), (5,), (6, 0))
    assert bins(costs, 0) == tuple((i,) for i in (1, 2, 3, 4, 5, 6, 0))
    assert bins(costs, 1) == ((1, 2, 3, 4, 5, 6, 0),)


def test_bins_of_the_published_deit_stitches():
    found = bins(dict(enumerate(DEIT)), 0.05)  # of 17.08 G: 0.854 G a bin
    assert [len(members) for members in found] == [7, 10, 10, 9, 2, *[3] * 11]
    assert [i for members in found for i in members] == list(range(71))
    assert all(DEIT[members[-1]] - DEIT[members[0]] <= 0.854 for members in found)


@pytest.mark.parametrize('scale', [1e-3, 1, 1e9])
def test_bins_do_not_depend_on_how_large_the_family_is(scale):
    assert bins({i: f * scale for i, f in enumerate(DEIT)}, 0.07) == bins(dict(enumerate(DEIT)), 0.07)


@pytest.mark.parametrize('turns', [1, 3])
def test_a_stratified_pass_draws_every_stitch_once_and_each_pass_in_another_order(turns):
    draw = sampler('stratified', stitches_per_step=turns)
    drawn = [draw(step, turn=turn) for step in range(7 * 6 // turns) for turn in range(turns)]
    passes = [tuple(drawn[i : i + 7]) for i in range(0, len(drawn), 7)]
    assert all(sorted(one) == list(IDS) for one in passes)
    assert len(set(passes)) == 6


@pytest.mark.parametrize('turns', [3, 5])
def test_a_step_of_three_turns_is_a_sandwich(turns):
    draw = sampler('sandwich', stitches_per_step=turns)
    steps = [[draw(step, turn=turn) for turn in range(turns)] for step in range(300)]
    assert {tuple(step[:2]) for step in steps} == {(1, 0)}
    assert {i for step in steps for i in step[2:]} == set(IDS)


@pytest.mark.parametrize('turns', [1, 2])
def test_a_step_of_fewer_turns_is_part_of_a_sandwich_of_four(turns):
    draw = sampler('sandwich', stitches_per_step=turns)
    drawn = [draw(step, turn=turn) for step in range(400 // turns) for turn in range(turns)]
    assert set(drawn[::4]) == {1}
    assert set(drawn[1::4]) == {0}
    assert set(drawn[2::4]) | set(drawn[3::4]) == set(IDS)


@pytest.mark.parametrize('name', SAMPLERS)
def test_a_draw_depends_on_seed_step_and_turn_alone_and_on_the_rank_where_asked(name):
    def draws(rank=0, **settings):
        draw = sampler(name, stitches_per_step=3, **settings)
        return [draw(step, rank, turn) for step in reversed(range(100)) for turn in range(3)]

    assert draws() == draws() == draws(rank=3)
    assert draws() != draws(seed=1)
    assert draws(stitch_per_rank=True) != draws(rank=1, stitch_per_rank=True)
    assert draws(rank=1, stitch_per_rank=True) == draws(rank=1, stitch_per_rank=True)


@pytest.mark.parametrize('name', [name for name in SAMPLERS if name != 'anchors'])
def test_stitches_that_are_not_trained_are_never_drawn(name):
    draw = sampler(name, ids=range(2, 7))
    assert {draw(step) for step in range(300)} == set(range(2, 7))


def test_with_frozen_anchors_a_sandwich_lies_between_the_dearest_and_the_cheapest_stitch():
    draw = sampler('sandwich', ids=range(2, 7))
    assert [draw(0), draw(1)] == [6, 2]


@pytest.mark.parametrize(
    ('name', 'settings', 'match'),
    [
        ('unifrom', {}, 'did you mean uniform'),
        ('flops', {'sampler_width': -0.1}, 'sampler_width .* not -0.1'),
        ('log_flops', {'sampler_width': float('nan')}, 'sampler_width .* not nan'),
        ('anchors', {'sampler_anchors': 1.0}, 'sampler_anchors .* not 1.0'),
        ('anchors', {'ids': range(2, 7)}, 'freeze_anchors'),
        ('flops', {'net': net_of(1, None, 3)}, 'FLOPs of stitch 1 .* measure_costs'),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_one_sentence(name, settings, match):
    with pytest.raises(SnnetError, match=match):
        sampler(name, **settings)
