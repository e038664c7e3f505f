"""The published integers: counts, FLOPs, parameters and stitch layers of whole families."""

from __future__ import annotations

from functools import partial

import pytest
import timm

import snnet
from snnet.anchors.weights import load_anchor
from snnet.utils.skip_random_weights import SkipRandomWeights
from tests.helpers.published_numbers import published_table

DEIT, SWIN, RESNET = 'deit_tiny,deit_small,deit_base', 'swin_tiny,swin_small,swin_base', 'resnet18,resnet50'
FILES = {DEIT: 'deit_ti_s_b', SWIN: 'swin_ti_s_b', RESNET: 'resnet18_resnet50'}
swin = partial(pytest.param, SWIN, marks=pytest.mark.slow)
"""A case with the family that takes five seconds to make."""
MODELS: dict[str, snnet.Anchor] = {}
NETS: dict[tuple[str, bool], snnet.StitchableNet] = {}


@pytest.fixture(scope='module', autouse=True)
def _forget():
    yield
    MODELS.clear()
    NETS.clear()


def family(names, official=True):
    """A net of real size, made once; nets with and without `official` share their networks."""
    if (names, official) not in NETS:
        for name in set(names.split(',')) - MODELS.keys():
            with SkipRandomWeights():  # only shapes count here
                MODELS[name] = load_anchor(name, pretrained=False)
        anchors = [
            snnet.as_anchor(MODELS[name].model, name, source=MODELS[name].source, official=official)
            for name in names.split(',')
        ]
        NETS[names, official] = snnet.create_stitchable_net(anchors, pretrained=False, official=official)
    return NETS[names, official]


def anchors_of(net):
    return [net.anchor(i) for i in range(len(net.anchors))]


@pytest.mark.quick(
    'True-deit_tiny,deit_small,deit_base-options2-75',
    'False-deit_tiny,deit_small,deit_base-options2-75',
    'False-resnet18,resnet50-options6-10',
    'False-levit_192,levit_256-options8-8',
)
@pytest.mark.parametrize(
    ('names', 'options', 'count'),
    [
        (DEIT, {}, 71),
        (DEIT, {'window': 2, 'step': 2}, 51),
        (DEIT, {'window': 3, 'step': 3}, 75),
        (DEIT, {'window': 4, 'step': 4}, 99),
        (DEIT, {'nearest': False}, 732),
        swin({}, 41),
        (RESNET, {}, 10),
        ('resnet18,swin_tiny', {}, 8),
        ('levit_192,levit_256', {}, 8),
    ],
)
@pytest.mark.parametrize('official', [True, False])
def test_the_number_of_stitches(names, options, count, official):
    assert len(snnet.list_stitches(anchors_of(family(names)), official=official, **options)) == count


@pytest.mark.parametrize(('names', 'nearest'), [(DEIT, True), (DEIT, False), swin(True), ('levit_192,levit_256', True)])
def test_the_number_of_stitches_is_the_same_in_both_directions(names, nearest):
    there, back = (
        snnet.list_stitches(anchors_of(family(names)), nearest=nearest, direction=direction)
        for direction in ('fast_to_slow', 'slow_to_fast')
    )
    assert len(there) == len(back)


def test_from_slow_to_fast_resnets_lose_the_three_joins_that_would_start_by_downsampling():
    back = snnet.list_stitches(anchors_of(family(RESNET)), direction='slow_to_fast')
    assert [str(stitch) for stitch in back[2:]] == [
        *(f'resnet50[:{stop}] > resnet18[3:]' for stop in (6, 7)),
        *(f'resnet50[:{stop}] > resnet18[5:]' for stop in (11, 12, 13)),
    ]


@pytest.mark.parametrize(
    ('names', 'stitch', 'flops', 'params'),
    [
        (DEIT, 0, 1258411200, 5717416),
        (DEIT, 1, 4608338304, 22050664),
        (DEIT, 2, 17582740224, 86567656),
        (DEIT, 3, 4696010496, 22383208),
        (DEIT, 9, 4142569728, 19724008),
        (DEIT, 40, 16885106688, 82951528),
        (DEIT, 70, 6121909248, 29817448),
        swin(0, 4509194496, 28288354),
        swin(1, 8768534784, 49606258),
        swin(2, 15467826176, 87768224),
        swin(3, 8797436160, 49615570),
        swin(9, 8442491136, 47977606),
        swin(40, 9667129344, 63376422),
        (RESNET, 0, 1819065856, 11689512),
        (RESNET, 1, 4111512576, 25557032),
        (RESNET, 2, 3755463680, 25405992),
        (RESNET, 9, 2490225664, 21176872),
    ],
)
def test_published_flops_and_parameters(names, stitch, flops, params):
    record = family(names).records[stitch]
    assert (record.flops, record.params) == (flops, params)


@pytest.mark.parametrize(('names', 'total'), [(DEIT, 118403448), swin(170009108), (RESNET, 37904976)])
def test_published_size_of_the_whole_net(names, total):
    assert sum(p.numel() for p in family(names).parameters()) == total


@pytest.mark.parametrize('names', [DEIT, swin(), RESNET])
def test_every_published_row(names):
    net, table = family(names), published_table(FILES[names])
    anchors = anchors_of(net)
    assert [sum(p.numel() for p in anchor.parameters()) for anchor in anchors] == table['anchor_params']
    assert [[len(span) for span in anchor.blocks()] for anchor in anchors] == table['anchor_depths']
    assert len(net.stitches) == table['num_configs']
    layers = {}
    for stitch, record, row in zip(net.stitches, net.records, table['configs'], strict=True):
        assert (record.flops, record.params) == (row['flops'], row['params_active'])
        front, end = anchors[row['front_anchor']], anchors[row['end_anchor']]
        join = row['stitch']
        if join is None:
            assert stitch.legs == (snnet.Leg(front.name),)
            continue
        stop = front.blocks()[join['stage']][join['front_block']] + 1
        start = end.blocks()[join['stage']][join['end_block']]
        assert stitch.legs == (snnet.Leg(front.name, None, stop), snnet.Leg(end.name, start, None))
        layers.setdefault((front.name, end.name, join['stage'], join['layer']), set()).update(stitch.layers)
    assert all(len(ours) == 1 for ours in layers.values()), 'a published stitch layer is ours, one to one'
    assert sorted(layer for ours in layers.values() for layer in ours) == list(range(len(net.stitch_layers)))


@pytest.mark.slow  # a few seconds
def test_the_final_norm_is_all_that_official_leaves_out_of_deit():
    ours, theirs = family(DEIT, official=False), family(DEIT)
    assert ours.stitches == theirs.stitches
    for stitch, a, b in zip(ours.stitches, ours.records, theirs.records, strict=True):
        width = ours.anchor(stitch.legs[-1].anchor).boundaries[-1].channels
        missing = (0, 0) if a.anchor else (5 * 197 * width, 2 * width)
        assert (a.flops - b.flops, a.params - b.params) == missing


@pytest.mark.quick('resnet18,resnet50')
@pytest.mark.parametrize('names', [SWIN, RESNET])
def test_official_changes_only_stitch_layers_of_staged_networks(names):
    ours, theirs = family(names, official=False), family(names)
    assert [s.legs for s in ours.stitches] == [s.legs for s in theirs.stitches]
    assert [s.layers for s in ours.stitches] != [s.layers for s in theirs.stitches]
    for a, b in zip(ours.records, theirs.records, strict=True):
        assert (a.flops, a.params) == (b.flops, b.params)


def vit_flops(width, blocks, start=0, stop=None):
    """Multiply-adds of blocks of a ViT on 196 patches and a class token, as fvcore counts them (5 per normed value)."""
    tokens, stop = 197, blocks if stop is None else stop
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 2 * 5 * tokens * width
    stem = 196 * 768 * width if start == 0 else 0
    head = 5 * tokens * width + 1000 * width if stop == blocks else 0
    return stem + (stop - start) * block + head


@pytest.mark.slow  # a few seconds
def test_the_134_costs_of_snnetv2_follow_from_the_sizes_of_its_networks():
    """No published rows are at hand: the anchors are checked against other papers, the rows against the rule."""
    with SkipRandomWeights():
        models = [timm.create_model(f'deit3_{size}_patch16_224') for size in ('small', 'large')]
    anchors = [snnet.as_anchor(model, name) for model, name in zip(models, 'sl', strict=True)]
    net = snnet.StitchableNet(anchors, snnet.list_stitches(anchors, direction='snnetv2'))
    found = [record.flops for record in snnet.measure_costs(net).records]
    small, large, there = partial(vit_flops, 384, 12), partial(vit_flops, 1024, 24), 197 * 384 * 1024
    n = range(11)
    pairs = [(i, j) for i in n for j in n if i < j]
    expected = [small(), large()]
    expected += [small(0, i + 1) + there + large(2 * i + 2) for i in n]
    expected += [large(0, 2 * i + 2) + there + small(i + 1) for i in n]
    expected += [large(0, 2 * i + 2) + small(i + 1, j + 1) + 2 * there + large(2 * j + 2) for i, j in pairs]
    expected += [small(0, i + 1) + large(2 * i + 2, 2 * j + 2) + 2 * there + small(j + 1) for i, j in pairs]
    assert found == expected
    assert len(found) == 134
    assert found[0] == published_table('deit_ti_s_b')['configs'][1]['flops'], 'DeiT-III-S has the size of DeiT-S'
    assert round(found[1] / 1e9, 1) == 61.6, 'as the paper on DeiT III says'
