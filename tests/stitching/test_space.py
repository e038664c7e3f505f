"""What the rules list, on small networks; test_oracle.py has the published integers."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st

import snnet
from snnet import CannotStitch, Leg, SnnetError, list_stitches
from snnet.stitching.pairing import Join, paired, unpaired
from tests.helpers.families import (
    FAMILIES,
    build,
    every_net,
    family_net,
    images,
    resnet,
    shared_net,
    swin,
    three_vits,
    vit,
)

depths = st.integers(1, 24)


def anchors_of(net):
    return [net.anchor(i) for i in range(len(net.anchors))]


@pytest.fixture(scope='module')
def vits():
    return anchors_of(three_vits())


def covering_windows(depth, window, step):
    """First blocks at 0, step, 2 step, ... while the last block is not reached."""
    firsts, last = [], -1
    while last < depth - 1 and len(firsts) * step < depth:
        firsts.append(len(firsts) * step)
        last = firsts[-1] + window - 1
    return [range(first, min(first + window, depth)) for first in firsts]


@given(depth=depths, window=st.integers(1, 26), step=st.integers(1, 6), official=st.booleans())
def test_paired_joins_are_the_pairs_within_a_window_each_with_its_first_window(depth, window, step, official):
    spans = covering_windows(depth, window, step if official else min(step, window))
    expected = {}
    for j in range(depth):
        for k in range(depth):
            first = next((i for i, span in enumerate(spans) if j in span and k in span), None)
            if first is not None:
                expected[j, k] = first
    joins = paired(depth, window, step, official)
    assert {(x.j, x.k): x.layer for x in joins} == expected
    assert len(joins) == len(expected)
    assert {x.layer for x in joins} == set(range(len(spans))), 'no stitch layer without a stitch'
    if not official:
        assert {x.j for x in joins} == {x.k for x in joins} == set(range(depth)), 'no block is left out'


@pytest.mark.parametrize(
    ('window', 'step', 'stitches', 'layers'),
    [
        (2, 1, 34, 11), (2, 2, 24, 6), (3, 3, 36, 4), (4, 4, 48, 3), (3, 2, 44, 6),
        (4, 3, 54, 4), (5, 5, 54, 3), (2, 3, 16, 4), (1, 1, 12, 12), (12, 5, 144, 1),
    ],
)  # fmt: skip
def test_windows_of_twelve_blocks_as_published(window, step, stitches, layers):
    """71, 51, 75 and 99 stitches of DeiT-Ti/S/B are 3 + 2 x 34, 24, 36 and 48; then 91, 111, 111 and 35."""
    joins = paired(12, window, step, official=True)
    assert (len(joins), len({x.layer for x in joins})) == (stitches, layers)
    if step <= window:
        assert paired(12, window, step) == joins


def test_a_step_that_would_leave_out_blocks_is_shortened_and_that_is_said(vits, caplog):
    with caplog.at_level(logging.WARNING):
        stitches = list_stitches(vits, window=1, step=2)
    assert 'step 2 would leave out the blocks between two windows of 1: windows advance by 1' in caplog.text
    assert stitches == list_stitches(vits, window=1, step=1)
    caplog.clear()
    assert len(list_stitches(vits, window=1, step=2, official=True)) == 3 + 2 * 2
    assert caplog.text == ''


def plain_pair(small, large):
    return anchors_of(build(('s', partial(vit, 8, small)), ('l', partial(vit, 16, large)), size=32))


def spans_of(stitch, anchors):
    """The blocks that each leg runs, first and last."""
    found = []
    for leg in stitch.legs:
        blocks = next(a for a in anchors if a.name == leg.anchor).blocks()[0]
        run = [
            i for i, at in enumerate(blocks) if (leg.start or 0) <= at < (len(blocks) if leg.stop is None else leg.stop)
        ]
        found.append((leg.anchor, run[0], run[-1]))
    return found


@pytest.mark.parametrize(('depth', 'ratio'), [(12, 2), (12, 1), (3, 3), (4, 2)])
def test_the_space_of_snnetv2_is_its_rule_written_out(depth, ratio):
    anchors = plain_pair(depth, depth * ratio)
    small, large, r = depth - 1, depth * ratio - 1, ratio
    n = range(depth - 1)
    pairs = [(i, j) for i in n for j in n if i < j]
    expected = [[('s', 0, small)], [('l', 0, large)]]
    expected += [[('s', 0, i), ('l', r * (i + 1), large)] for i in n]
    expected += [[('l', 0, r * (i + 1) - 1), ('s', i + 1, small)] for i in n]
    expected += [[('l', 0, r * (i + 1) - 1), ('s', i + 1, j), ('l', r * (j + 1), large)] for i, j in pairs]
    expected += [[('s', 0, i), ('l', r * (i + 1), r * (j + 1) - 1), ('s', j + 1, small)] for i, j in pairs]
    stitches = list_stitches(anchors, direction='snnetv2')
    assert [spans_of(stitch, anchors) for stitch in stitches] == expected
    assert len(stitches) == {12: 134, 3: 2 + 4 + 2, 4: 2 + 6 + 6}[depth]
    there, back = list(n), [depth - 1 + i for i in n]
    layers = [(), (), *((i,) for i in there), *((i,) for i in back)]
    layers += [(back[i], there[j]) for i, j in pairs] + [(there[i], back[j]) for i, j in pairs]
    assert [stitch.layers for stitch in stitches] == layers


def test_every_stitch_of_snnetv2_runs():
    net = build(('s', partial(vit, 8, 2)), ('l', partial(vit, 16, 4)), size=32, direction='snnetv2')
    with torch.no_grad():
        found = [net(images(32, 1), stitch=i) for i in range(len(net.stitches))]
    assert len(found) == 4
    assert all(logits.isfinite().all() for logits in found)


def test_networks_that_the_rule_of_snnetv2_does_not_fit_are_refused_saying_what_they_are(vits):
    with pytest.raises(
        CannotStitch, match=r"'snnetv2' needs two networks .* got w16 \(3 blocks\), w24 \(3 blocks\), w32"
    ):
        list_stitches(vits, direction='snnetv2')
    with pytest.raises(CannotStitch, match=r's \(2 blocks\), l \(3 blocks\)'):
        list_stitches(plain_pair(2, 3), direction='snnetv2')
    with pytest.raises(CannotStitch, match=r'small \(4 stages\)'):
        list_stitches(anchors_of(shared_net('resnet')), direction='snnetv2')


def stage_ends_of(front, end):
    """Every pair of positions where both networks leave a stage of one grid, as legs: by the meaning of the words."""
    ends = [span[-1] + 1 for span in front.blocks()[:-1]]
    begins = [span[-1] + 1 for span in end.blocks()[:-1]]
    return {
        (Leg(front.name, None, stop), Leg(end.name, start, None))
        for stop in ends
        for start in begins
        if front.boundaries[stop].grid == end.boundaries[start].grid
    }


@pytest.mark.parametrize('direction', ['fast_to_slow', 'slow_to_fast', 'two_way'])
@pytest.mark.parametrize('family', ['resnet', 'swin', 'levit', 'convnext', 'maps to windows'])
def test_stage_ends_are_joined_on_demand_each_with_a_layer_of_its_own(family, direction):
    small, large = anchors_of(shared_net(family))
    plain = list_stitches([small, large], direction=direction)
    more = list_stitches([small, large], direction=direction, stage_ends=True)
    old = {stitch.legs for stitch in plain}
    assert [stitch.legs for stitch in more if stitch.legs in old] == [stitch.legs for stitch in plain]
    expected = {'fast_to_slow': [(small, large)], 'slow_to_fast': [(large, small)]}
    expected['two_way'] = [pair for pairs in list(expected.values()) for pair in pairs]
    added = [stitch for stitch in more if stitch.legs not in old]
    assert {stitch.legs for stitch in added} == set().union(*(stage_ends_of(*pair) for pair in expected[direction]))
    assert len(added) >= len(expected[direction]), 'there are some'
    used = [stitch.layers for stitch in more]
    assert all(used.count(stitch.layers) == 1 for stitch in added)


def test_stage_ends_run_the_cheaper_the_later_the_front_ends():
    net = family_net('resnet', stage_ends=True)
    plain = {stitch.legs for stitch in shared_net('resnet').stitches}
    added = [i for i, stitch in enumerate(net.stitches) if stitch.legs not in plain]
    assert [str(net.stitches[i]) for i in added] == [
        'small[:2] > large[2:]',
        'small[:4] > large[5:]',
        'small[:6] > large[9:]',
    ]
    with torch.no_grad():
        assert all(net(images(64), stitch=i).isfinite().all() for i in added)
    costs = [net.records[i].flops for i in added]
    assert costs == sorted(costs, reverse=True), 'the earlier the front ends, the more of the large network runs'


def test_stages_of_a_single_block_can_be_joined_where_they_end_only():
    makers = [(name, partial(resnet, 'resnet18', (1, 1, 1, 1), width)) for name, width in (('a', 8), ('b', 16))]
    with pytest.raises(CannotStitch, match='share grids but are too shallow there'):
        build(*makers, size=64)
    net = build(*makers, size=64, stage_ends=True)
    assert [str(s) for s in net.stitches[2:]] == ['a[:1] > b[1:]', 'a[:2] > b[2:]', 'a[:3] > b[3:]']


def test_networks_of_one_stage_have_no_stage_ends(vits):
    assert list_stitches(vits, stage_ends=True) == list_stitches(vits)


@given(front=depths, end=depths, official=st.booleans())
def test_unpaired_joins_are_the_nearest_blocks_of_the_deeper_anchor(front, end, official):
    joins = unpaired(front, end, official)
    shallow, deep = sorted((front, end))
    nearest = {(k * shallow // deep, k) for k in range(deep) if k * shallow // deep < k}
    assert {(x.j, x.k) if end == deep else (x.k, x.j) for x in joins} == nearest
    assert {x.layer for x in joins} <= set(range(shallow))


def test_unpaired_layers_follow_the_shallow_block_and_officially_lag_by_one():
    assert unpaired(2, 4) == [Join(0, 1, 0), Join(1, 2, 1), Join(1, 3, 1)]
    assert unpaired(2, 4, official=True) == [Join(0, 1, 0), Join(1, 2, 0), Join(1, 3, 1)]
    assert unpaired(4, 2) == [Join(1, 0, 0), Join(2, 1, 1), Join(3, 1, 1)]


def test_ids_go_anchors_first_then_pair_by_pair_join_by_join(vits):
    stitches = [str(stitch) for stitch in list_stitches(vits)]
    joins = [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 1), (3, 2)]
    assert stitches == [
        *('w16[:]', 'w24[:]', 'w32[:]'),
        *(f'w16[:{stop}] > w24[{start}:]' for stop, start in joins),
        *(f'w24[:{stop}] > w32[{start}:]' for stop, start in joins),
    ]


def test_without_the_nearest_rule_the_same_ids_come_first_then_jumps_then_chains(vits):
    near, far = list_stitches(vits), list_stitches(vits, nearest=False)
    assert far[: len(near)] == near
    legs = [[leg.anchor for leg in stitch.legs] for stitch in far[len(near) :]]
    assert legs == [['w16', 'w32']] * 7 + [['w16', 'w24', 'w32']] * (len(legs) - 7)


def test_the_chains_are_all_those_whose_middle_leg_runs_a_block(vits):
    near = list_stitches(vits)
    first = [s.legs for s in near if s.legs[0].anchor == 'w16' and len(s.legs) == 2]
    second = [s.legs for s in near if s.legs[0].anchor == 'w24' and len(s.legs) == 2]
    expected = {
        (a[0], Leg('w24', a[1].start, b[0].stop), b[1]) for a in first for b in second if a[1].start < b[0].stop
    }
    chains = [s.legs for s in list_stitches(vits, nearest=False) if len(s.legs) == 3]
    assert set(chains) == expected
    assert len(chains) == len(expected)


def out_of_reach(small, large):
    """Unpaired joins from large to small that would enter a stage before the block that downsamples for it."""
    count = 0
    for stage in small.stitch_stages():
        first, a, b = small.blocks()[stage][0], len(small.blocks()[stage]), len(large.blocks()[stage])
        if a != b and small.boundaries[first].grid != small.boundaries[first + 1].grid:
            count += sum(k * a // b == 0 for k in range(1, b))
    return count


@pytest.mark.quick('options0-vit', 'options0-resnet', 'options1-vit of other depth', 'options1-vit without class token')
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('options', [{}, {'window': 3, 'step': 2}])
def test_both_directions_list_the_same_number_but_for_ends_that_would_start_by_downsampling(family, options):
    anchors = anchors_of(shared_net(family))
    there = list_stitches(anchors, **options)
    back = list_stitches(anchors, direction='slow_to_fast', **options)
    assert {stitch.legs[0].anchor for stitch in there[2:]} == {'small'}
    assert {stitch.legs[0].anchor for stitch in back[2:]} == {'large'}
    assert back[:2] == there[:2]
    assert len(back) == len(there) - out_of_reach(*anchors) > 2
    assert bool(out_of_reach(*anchors)) == (family in ('resnet', 'regnet z'))


def test_both_directions_list_the_same_number_of_chains(vits):
    there, back = (list_stitches(vits, nearest=False, direction=d) for d in ('fast_to_slow', 'slow_to_fast'))
    assert len(there) == len(back)


def test_ids_count_from_the_small_anchors_in_both_directions(vits):
    legs = [[leg.anchor for leg in stitch.legs] for stitch in list_stitches(vits, direction='slow_to_fast')]
    assert legs == [['w16'], ['w24'], ['w32'], *[['w24', 'w16']] * 7, *[['w32', 'w24']] * 7]


def test_two_ways_of_two_blocks_by_hand():
    makers = [(name, partial(vit, width, 2)) for name, width in (('a', 16), ('b', 24))]
    net = build(*makers, size=32, direction='two_way', nearest=False)
    joins = [(1, 0), (1, 1), (2, 0), (2, 1)]
    between = [(0, 1), (0, 2), (1, 2)]
    assert [str(stitch) for stitch in net.stitches] == [
        *('a[:]', 'b[:]'),
        *(f'a[:{stop}] > b[{start}:]' for stop, start in joins),
        *(f'b[:{stop}] > a[{start}:]' for stop, start in joins),
        *(f'a[:1] > b[{start}:{stop}] > a[1:]' for start, stop in between),
        *(f'b[:1] > a[{start}:{stop}] > b[1:]' for start, stop in between),
    ]
    assert [stitch.layers for stitch in net.stitches] == [
        (),
        (),
        *[(0,)] * 4,
        *[(1,)] * 4,
        *[(0, 1)] * 3,
        *[(1, 0)] * 3,
    ]


@pytest.mark.quick('True-71-139')
@pytest.mark.parametrize(('nearest', 'there', 'both'), [(True, 71, 139), (False, 732, 4569)])
def test_two_ways_of_three_anchors_of_twelve_blocks(nearest, there, both):
    """139 = 3 + 4 * 34; 4569 = 732 + 729 + 3 pairs * 2 * 518 chains that return.

    518 = 627 (as Ti-S-B has) - 109 whose end would run a block that the front has run.
    """
    vits = anchors_of(build(*((f'w{w}', partial(vit, w, 12)) for w in (8, 16, 24)), size=32))
    one_way, two_way = (list_stitches(vits, nearest=nearest, direction=d) for d in ('fast_to_slow', 'two_way'))
    joins = [(j, k) for j in range(12) for k in range(12) if abs(j - k) < 2]
    chains = [1 for j, k in joins for second_j, second_k in joins if k <= second_j and j < second_k]
    assert (len(joins), len(chains), len(one_way), len(two_way)) == (34, 518, there, both)
    assert two_way[: len(one_way)] == one_way


COSTLY = ('regnet', 'regnet z', 'swin v2', 'levit of convolutions')


@pytest.mark.slow_for(*(f'{nearest}-{family}' for nearest in (True, False) for family in COSTLY))
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('nearest', [True, False])
def test_two_ways_are_both_ways_then_chains_that_return_and_run_no_module_twice(family, nearest):
    anchors = anchors_of(shared_net(family))
    there, back, both = (
        [stitch.legs for stitch in list_stitches(anchors, nearest=nearest, direction=direction)]
        for direction in ('fast_to_slow', 'slow_to_fast', 'two_way')
    )
    ways = len(there) + len(back) - 2
    assert both[:ways] == there + back[2:]
    assert (len(both) == ways) == nearest
    for front, middle, end in both[ways:]:
        assert front.anchor == end.anchor != middle.anchor
        assert middle.start < middle.stop
        assert front.stop <= end.start
    assert len(set(both)) == len(both)


def test_each_direction_has_stitch_layers_of_its_own(vits):
    stitches = list_stitches(vits, direction='two_way')
    used = {way: {s.layers for s in stitches if [leg.anchor for leg in s.legs] == list(way)} for way in WAYS}
    assert [len(layers) for layers in used.values()] == [2, 2, 2, 2]
    assert len(set().union(*used.values())) == 8


WAYS = (('w16', 'w24'), ('w24', 'w32'), ('w24', 'w16'), ('w32', 'w24'))


@every_net
def test_no_sub_network_is_listed_twice_and_every_one_runs(name):
    net = shared_net(name)
    assert len({stitch.legs for stitch in net.stitches}) == len(net.stitches)
    with torch.no_grad():
        for i in range(len(net.stitches)):
            assert net(images(net.input_size[1], 1), stitch=i).isfinite().all()


@pytest.mark.parametrize('family', ['resnet', 'regnet z', 'levit', 'convnext'])
def test_from_slow_to_fast_every_stitch_runs_too(family):
    anchors = anchors_of(shared_net(family))
    net = snnet.StitchableNet(anchors, list_stitches(anchors, direction='slow_to_fast')).eval()
    with torch.no_grad():
        for i in range(len(net.stitches)):
            assert net(images(net.input_size[1], 1), stitch=i).shape == (1, net.num_classes)


def test_staged_networks_never_run_a_block_of_the_same_depth_twice():
    net = shared_net('swin v2')
    blocks = [anchor.blocks() for anchor in anchors_of(net)]
    for stitch in net.stitches[2:]:
        front, end = stitch.legs
        stage = next(i for i, span in enumerate(blocks[0]) if front.stop - 1 in span)
        assert blocks[0][stage].index(front.stop - 1) < blocks[1][stage].index(end.start)


def test_the_front_stops_before_its_patch_merging_and_the_end_runs_its_own():
    net = shared_net('swin')
    entries = [{span[0] - 1 for span in anchor.blocks()[1:]} for anchor in anchors_of(net)]
    for stitch in net.stitches[2:]:
        front, end = stitch.legs
        assert front.stop - 1 not in entries[0]
        assert end.start not in entries[1]


@pytest.mark.slow  # a second
def test_a_cnn_joins_a_transformer_on_equal_grids_only():
    for net in (shared_net('maps to windows'), shared_net('windows to maps')):
        assert len(net.stitches) > 2
        grids = set()
        for stitch in net.stitches[2:]:
            front, end = stitch.legs
            at = net.anchor(front.anchor).boundaries[front.stop], net.anchor(end.anchor).boundaries[end.start]
            assert at[0].grid == at[1].grid
            assert {at[0].layout, at[1].layout} == {'NCHW', 'NHWC'}
            grids.add(at[0].grid)
        assert grids == {(8, 8), (4, 4)}


def test_a_given_order_is_sorted_by_cost_and_that_is_said(caplog):
    small, large = FAMILIES['vit'].small, FAMILIES['vit'].large
    with caplog.at_level(logging.WARNING):
        net = build(('large', large), ('small', small), size=32)
    assert [anchor.name for anchor in anchors_of(net)] == ['small', 'large']
    assert 'sorted by cost: small' in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        same = build(('small', small), ('large', large), size=32)
    assert 'sorted' not in caplog.text
    assert same.stitches == net.stitches


def test_anchors_of_equal_cost_keep_the_given_order():
    small = FAMILIES['vit'].small
    assert [a.name for a in anchors_of(build(('b', small), ('a', small), size=32))] == ['b', 'a']


@pytest.mark.parametrize(
    'options', [{'window': 0}, {'window': -1}, {'step': 0}, {'step': -2}, {'direction': 'up'}, {'direction': ''}]
)
def test_an_option_out_of_range_is_refused_naming_it(vits, options):
    ((name, value),) = options.items()
    with pytest.raises(SnnetError, match=name) as caught:
        list_stitches(vits, **options)
    assert str(value) in str(caught.value)


@pytest.mark.slow  # seconds
def test_a_window_wider_than_a_stage_is_one_window():
    anchors = anchors_of(build(('a', partial(swin, 8)), ('b', partial(swin, 16)), size=64))
    assert len({s.layers for s in list_stitches(anchors, window=100)[2:]}) == 3
    assert snnet.list_stitches(anchors, window=100) == snnet.list_stitches(anchors, window=4)
