from __future__ import annotations

import json
import re
from functools import cache, partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.levit import Levit
from torch import nn
from torch.nn import functional as F

import snnet
from snnet import Boundary, CannotStitch, Leg, SnnetError, StitchableNet
from snnet.anchors.anchor import Anchor
from snnet.anchors.network_line import Stage
from snnet.anchors.normalization import Normalization, Renormalize
from snnet.evaluation.evaluate import evaluate
from snnet.net.create import load_folder, load_zoo
from snnet.reassembly.build_reassembled import reassemble
from snnet.reassembly.fit_joins import initialize_joins
from snnet.reassembly.join_layer import JoinLayer, boundary_behind_join
from snnet.reassembly.legs_text import network_names, parse_legs
from snnet.reassembly.line_table import format_line, line_rows, module_names
from snnet.reassembly.published_flops import count_published_flops
from snnet.reassembly.published_networks import PUBLISHED_NETWORKS, published_network
from snnet.reassembly.reassembled import Reassembled
from snnet.reassembly.relayout import relayout
from snnet.training.trainer import train
from snnet.utils.skip_random_weights import SkipRandomWeights
from tests.helpers.families import FAMILIES, images, levit, shake, swin, vit
from tests.helpers.published_numbers import published_table
from tests.helpers.runs import eval_settings, train_settings

ZOO = {
    'cnn': FAMILIES['resnet'].small,
    'swin': partial(swin, 24),
    'vit': partial(vit, 48, img_size=64, patch_size=16, num_heads=4),
    'deit': partial(vit, 32, img_size=64, patch_size=16),
    'next': FAMILIES['convnext'].large,
    'levit': partial(levit, Levit, 16),
}
PLANS = {
    'maps to windows to tokens': 'cnn[:4] > swin[2:8] > vit[1:4]',
    'maps to windows to maps': 'cnn[0:4] > swin[3:8] > next[4:]',
    'tokens to maps to tokens': 'vit[:2] > next[4:7] > deit[2:]',
    'tokens to tokens': 'vit[:2] > deit[1:]',
    'a first leg further down': 'cnn[1:4] > levit[1:]',
}


@cache
def zoo() -> dict[str, Anchor]:
    """Small networks of several layouts, with noise in every weight, for images of 64 pixels."""
    return {
        name: snnet.as_anchor(shake(make(), seed).eval(), name, input_size=(3, 64, 64))
        for seed, (name, make) in enumerate(ZOO.items())
    }


SMALL = 'cnn[:3] > swin[3:5] > next[13:]'


def network(legs: str = SMALL, noise: bool = True, **options) -> Reassembled:
    net = reassemble(legs, zoo(), **options)
    if noise:
        shake(net.seams, 1)
    return net.eval()


class MobileNetLine(Anchor):
    """MobileNetV3 without a tracer: its sixteen modules in order."""

    def stem(self, x):
        return self.model.bn1(self.model.conv_stem(x))

    def stages(self):
        return [Stage(list(stage)) for stage in self.model.blocks]

    def head(self, x):
        return self.model.forward_head(x)


@cache
def on_paper(name: str) -> Anchor:
    """A network of real size without memory for its weights."""
    with torch.device('meta'), SkipRandomWeights():
        model = timm.create_model(name)
    kind = MobileNetLine if name.startswith('mobilenet') else snnet.as_anchor
    return kind(model, name, input_size=(3, 224, 224))


def published(name: str) -> Reassembled:
    """A network of the paper by its legs here, of networks without weights."""
    legs = PUBLISHED_NETWORKS[name]
    plain = re.sub(r'[.]\w+(?=\[)', '', legs)  # tags of weights do not matter
    anchors = {anchor: on_paper(anchor) for anchor in network_names(plain)}
    return reassemble(plain, anchors, stem='new', head='new', resample=False, num_classes=1000)


def sizes(modules) -> list[int]:
    return [sum(p.numel() for p in module.parameters()) for module in modules]


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('name', PUBLISHED_NETWORKS)
def test_published_networks_come_out_to_the_last_parameter_and_flop(name):
    expected = published_table('dery_networks')[name]
    net = published(name)
    assert sizes(net.legs) == expected['blocks']
    assert sizes(net.joins) == expected['joins']
    assert sizes([net]) == [expected['params']]
    net.freeze_blocks()
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected['trainable']
    assert count_published_flops(net) == expected['flops']


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('name', published_table('dery_models')['models'])
def test_the_blocks_of_published_networks_have_the_published_module_names(name):
    legs, _ = parse_legs(re.sub(r'[.]\w+(?=\[)', '', PUBLISHED_NETWORKS[name]), {})
    for leg, block in zip(legs, published_table('dery_models')['models'][name]['blocks'], strict=True):
        assert module_names(on_paper(leg.anchor))[leg.start : leg.stop] == block['timm_paths']


def test_an_unknown_published_network_is_refused():
    with pytest.raises(SnnetError, match=r"no published network 'DeRy\(5,1,1\)', only DeRy\(4,10,3\)"):
        published_network('DeRy(5,1,1)', pretrained=False)


def test_the_layouts_of_features_are_converted_and_their_grids_resampled():
    maps = images(8, 2)
    tokens = torch.cat([torch.zeros(2, 1, 3), maps.flatten(2).transpose(1, 2)], 1)
    given, plain = Boundary(3, (8, 8), 'NLC', 1), Boundary(3, (8, 8), 'NCHW')
    assert torch.equal(relayout(tokens, given, plain), maps)
    assert torch.equal(relayout(tokens, given, Boundary(3, (8, 8), 'NHWC')), maps.permute(0, 2, 3, 1))
    assert torch.equal(relayout(maps, plain, Boundary(3, (4, 4), 'NCHW')), F.avg_pool2d(maps, 2))
    assert torch.equal(
        relayout(maps, plain, Boundary(3, (4, 4), 'NLC')), F.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    )
    larger = relayout(tokens, given, Boundary(3, (16, 16), 'NLC', 1))
    assert torch.equal(larger[:, :1], tokens[:, :1])
    assert torch.equal(
        larger[:, 1:].transpose(1, 2).unflatten(2, (16, 16)), F.interpolate(maps, scale_factor=2, mode='bilinear')
    )


@pytest.mark.parametrize(
    ('front', 'end', 'norm'),
    [('NCHW', 'NCHW', nn.BatchNorm2d), ('NCHW', 'NLC', nn.BatchNorm2d), ('NHWC', 'NCHW', nn.BatchNorm2d),
     ('NLC', 'NHWC', nn.LayerNorm), ('NHWC', 'NHWC', nn.LayerNorm), ('NLC', 'NLC', nn.LayerNorm)],
)  # fmt: skip
def test_a_published_join_is_norm_map_and_leaky_relu(front, end, norm):
    join = JoinLayer(Boundary(5, (4, 4), front), Boundary(6, (4, 4), end))
    assert isinstance(join.norm, norm)
    assert sum(p.numel() for p in join.parameters()) == 2 * 5 + 5 * 6
    given, maps = Boundary(5, (4, 4), front), torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    shake(join).eval()
    out = join(relayout(maps, Boundary(5, (4, 4), 'NCHW'), given))
    x = join.norm(maps) if norm is nn.BatchNorm2d else join.norm(maps.movedim(1, -1)).movedim(-1, 1)
    expected = F.leaky_relu(F.conv2d(x, join.map.weight.view(6, 5, 1, 1)), 0.1)
    torch.testing.assert_close(relayout(out, join.end, Boundary(6, (4, 4), 'NCHW')), expected)


@pytest.mark.slow  # seconds
def test_prefix_tokens_stay_only_where_both_sides_have_as_many():
    front, end = Boundary(8, (4, 4), 'NLC', 1), Boundary(8, (2, 2), 'NLC', 1)
    assert boundary_behind_join(front, end, True) == end
    assert boundary_behind_join(front, Boundary(8, (4, 4), 'NLC', 2), True).prefix == 0
    assert network('vit[:2] > deit[1:]').options['head'] == 'own'
    without = network('cnn[:6] > deit[1:]')
    assert (without.options['head'], without.boundaries[-1]) == ('new', Boundary(32, (4, 4), 'NLC', 0))
    with pytest.raises(CannotStitch, match='1 prefix tokens that it looks at are not there'):
        network('cnn[:6] > deit[1:]', head='own')


@pytest.mark.slow_for('maps to windows to tokens-published', 'maps to windows to tokens-plain')
@pytest.mark.parametrize('joins', ['published', 'plain'])
@pytest.mark.parametrize('plan', PLANS)
def test_every_leg_runs_on_the_grid_of_its_own_network_where_it_is_resampled(plan, joins):
    net = network(PLANS[plan], joins=joins)
    at = 0
    for leg, part in zip(net.plan, net.legs, strict=True):
        start, stop, _ = slice(leg.start, leg.stop).indices(len(part.line()))
        for place, own in zip(net.boundaries[at:], part.boundaries[start : stop + 1], strict=False):
            assert (place.grid, place.channels, place.layout) == (own.grid, own.channels, own.layout)
        at += stop - start + 1
    assert at == len(net.boundaries) == len(net.line()) + 1
    anchor = snnet.as_anchor(net)
    assert anchor.boundaries == net.boundaries  # measured, against what was expected
    assert net(images(64)).shape == (2, 7)


def test_without_resampling_a_leg_runs_on_the_grid_that_comes():
    net = network('cnn[:2] > next[7:10] > next[13:]', resample=False)
    assert snnet.as_anchor(net).boundaries == net.boundaries
    assert net.boundaries[3].grid == (16, 16) != zoo()['next'].boundaries[7].grid


@pytest.mark.parametrize(
    ('legs', 'position'), [('cnn[:2] > swin[3:6]', 'position 4'), ('cnn[:2] > levit[1:3]', 'position 1')]
)
def test_blocks_that_are_tied_to_their_grid_refuse_another(legs, position):
    with pytest.raises(CannotStitch, match=f'{position} gets 16x16.* tied to that grid'):
        network(legs, resample=False)


def test_one_whole_leg_is_the_network_itself():
    for name in ('cnn', 'swin', 'vit'):
        net = network(f'{name}[:]')
        assert torch.equal(net(images(64)), zoo()[name].model(images(64)))


def test_the_first_leg_may_start_further_down_behind_a_join():
    net = network(PLANS['a first leg further down'])
    assert str(net) == 'cnn[:0] > cnn[1:4] > levit[1:]'
    x = zoo()['cnn'].stem(images(64))
    x = zoo()['cnn'].run(net.joins[0](x), 1, 4)
    x = zoo()['levit'].run(net.joins[1](x), 1, None)
    torch.testing.assert_close(net(images(64)), x)


def test_a_new_stem_gives_what_the_first_leg_takes():
    net = network('vit[0:2] > deit[1:]', stem='new', resample=False)
    assert net.boundaries[0] == Boundary(48, (16, 16), 'NLC', 0)
    assert network('vit[0:2] > deit[1:]', stem='new').boundaries[0] == Boundary(48, (4, 4), 'NLC', 0)
    assert net(images(64)).shape == (2, 7)
    assert not any(name.startswith('legs.0.model.patch_embed') for name, _ in net.named_parameters())


def test_new_parts_are_drawn_by_key_alone():
    state = torch.get_rng_state()
    one, two, other = (network(stem='new', head='new', noise=False, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ('stem.conv.weight', 'seams.0.map.weight', 'head.fc.weight'):
        assert torch.equal(one.get_parameter(name), two.get_parameter(name))
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    assert one.head.fc.bias.abs().max() > 0


@pytest.mark.parametrize(('options', 'trained'), [
    ({}, {'seams', 'legs.2.model.head'}),
    ({'stem': 'new', 'head': 'new'}, {'seams', 'stem', 'head'}),
])  # fmt: skip
def test_frozen_blocks_do_not_train_and_keep_their_statistics(options, trained):
    net = network(**options).freeze_blocks()
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {part for part in trained for name in names if name.startswith(part)} == trained
    assert all(name.startswith(tuple(trained)) for name in names)
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.train()(images(64, 4)).sum().backward()
    changed = {name for name, value in net.named_buffers() if not torch.equal(value, before[name])}
    assert any(name.startswith('seams') for name in changed)
    assert not any(name.startswith('legs') for name in changed)
    assert all(p.grad is not None for name, p in net.named_parameters() if name in names)
    net.freeze_blocks(False)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


def test_it_is_a_line_whose_stages_are_runs_of_one_grid_and_width():
    anchor = snnet.as_anchor(network(PLANS['maps to windows to maps']))
    assert [len(stage.blocks) for stage in anchor.stages()] == [2, 2, 2, 2, 1, 6, 2]
    assert [isinstance(stage.entry, JoinLayer) for stage in anchor.stages()] == [
        False,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert torch.equal(anchor(images(64)), anchor.model(images(64)))


@pytest.mark.parametrize('stop', [2, 4, 7])
def test_it_is_cut_anywhere(stop):
    anchor, x = snnet.as_anchor(network()), images(64)
    front, end = anchor.cut(None, stop), anchor.cut(stop, None)
    torch.testing.assert_close(end.run(front.run(x, None, stop), stop, None), anchor(x))
    held = sum(p.numel() for part in (front, end) for p in part.parameters())
    assert held == sum(p.numel() for p in anchor.parameters())


@pytest.mark.slow  # a few seconds
def test_it_is_an_anchor_of_a_stitchable_net_that_is_saved(tmp_path):
    net = snnet.create_stitchable_net([snnet.as_anchor(network(), 'new'), zoo()['next']], pretrained=False).eval()
    assert len(net.stitches) > 2
    net.save_pretrained(tmp_path)
    loaded, x = StitchableNet.from_pretrained(tmp_path), images(64)
    assert loaded.records == net.records
    for stitch in range(len(net.stitches)):
        expected = net(x, stitch=stitch)
        assert torch.equal(loaded(x, stitch=stitch), expected)
        torch.testing.assert_close(net.extract(stitch)(x), expected)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    'options', [{}, {'joins': 'plain'}, {'stem': 'new', 'head': 'new', 'resample': False, 'num_classes': 3}]
)
def test_it_comes_back_from_its_folder(tmp_path, options):
    net = network('cnn[1:2] > next[7:10] > next[13:]', **options)
    net.save_pretrained(tmp_path)
    loaded = Reassembled.from_pretrained(tmp_path)
    assert (loaded.plan, loaded.options, loaded.boundaries) == (net.plan, net.options, net.boundaries)
    assert torch.equal(loaded(images(64)), net(images(64)))
    assert json.loads((tmp_path / 'config.json').read_text())['anchors'][0]['args']['legs'] == str(net)
    assert StitchableNet.from_pretrained(tmp_path).records[0].flops > 0


@pytest.mark.slow  # seconds
def test_two_checkpoints_of_one_architecture_stay_apart(tmp_path):
    names = []
    for seed in (1, 2):
        model = shake(timm.create_model('test_vit', num_classes=3, img_size=32), seed)
        save_file(model.state_dict(), tmp_path / f'{seed}.safetensors')
        names.append(f'test_vit={tmp_path / f"{seed}.safetensors"}')
    anchors = load_zoo(names, pretrained=False, img_size=32)
    assert list(anchors) == names == [anchor.name for anchor in anchors.values()]
    assert list(load_zoo(names[:1], pretrained=False, img_size=32)) == ['test_vit']
    net = reassemble([Leg(name, place, place + 1) for place, name in enumerate(names)], anchors).eval()
    net.save_pretrained(tmp_path / 'net')
    loaded = Reassembled.from_pretrained(tmp_path / 'net')
    for i, anchor in enumerate(anchors.values()):
        weight = anchor.model.blocks[i].attn.qkv.weight
        assert torch.equal(loaded.legs[i].model.blocks[i].attn.qkv.weight, weight)
    assert torch.equal(loaded(images(32)), net(images(32)))
    again = load_zoo([str(tmp_path / 'net')], pretrained=False)
    assert torch.equal(again[str(tmp_path / 'net')](images(32)), net(images(32)))
    with pytest.raises(SnnetError, match='named twice'):
        load_zoo('test_vit,test_vit', pretrained=False)


@pytest.mark.slow  # a few seconds
def test_reassembled_networks_are_zoo_networks_in_turn(tmp_path):
    first = snnet.as_anchor(network(), 'first')
    net = reassemble('first[:4] > vit[2:]', {'first': first, 'vit': zoo()['vit']}).eval()
    net.save_pretrained(tmp_path)
    assert torch.equal(Reassembled.from_pretrained(tmp_path)(images(64)), net(images(64)))


@pytest.mark.slow  # a few seconds
def test_a_net_of_several_anchors_and_foreign_images_are_refused_as_an_anchor(tmp_path):
    snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, img_size=32).save_pretrained(tmp_path / 'two')
    with pytest.raises(SnnetError, match='holds a whole net of 2 anchors'):
        load_folder(str(tmp_path / 'two'))
    network().save_pretrained(tmp_path / 'one')
    with pytest.raises(CannotStitch, match='made for images of 64x64, not 32x32'):
        load_folder(str(tmp_path / 'one'), img_size=32)
    snnet.create_stitchable_net('test_vit', pretrained=False, img_size=32).save_pretrained(tmp_path / 'vit')
    with pytest.raises(SnnetError, match='holds a VisionTransformer, not a reassembled network'):
        Reassembled.from_pretrained(tmp_path / 'vit')


def test_a_network_that_timm_did_not_make_cannot_be_saved(tmp_path):
    anchors = {'levit': zoo()['levit'], 'cnn': zoo()['cnn']}  # the LeViT was made by its class
    with pytest.raises(SnnetError, match=r'levit cannot be saved: timm\.create_model did not make it'):
        reassemble('cnn[:4] > levit[1:]', anchors).save_pretrained(tmp_path / 'net')
    assert not (tmp_path / 'net').exists()


def trained(folder, output, **changes):
    options = {'anchors': str(folder), 'num_classes': None, 'img_size': None, 'epochs': 1, **changes}
    return train(train_settings(output, **options))


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('frozen', [True, False])
def test_it_is_trained_evaluated_and_used_by_name(tmp_path, frozen):
    net = network()
    net.save_pretrained(tmp_path / 'start')
    trained(tmp_path / 'start', tmp_path / 'run', freeze_anchors=frozen)
    after = Reassembled.from_pretrained(tmp_path / 'run' / 'net')
    state = after.state_dict()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(state[name], value)}
    assert any(name.startswith('seams.0.norm.running') for name in changed)
    assert any(name.startswith('seams.1.map') for name in changed)
    assert any(name.startswith('legs.2.model.head') for name in changed)
    assert any(name.startswith('legs.0') or name.startswith('legs.1') for name in changed) is not frozen
    record = evaluate(eval_settings(tmp_path / 'run' / 'net'))[0].records[0]
    assert (record.n, record.anchor) == (10, True)
    name = str(tmp_path / 'run' / 'net')
    both = snnet.create_stitchable_net([name, zoo()['next']], pretrained=False, num_classes=7, img_size=64)
    assert torch.equal(both.anchor(name).eval()(images(64)), after(images(64)))


@pytest.mark.slow  # a few seconds
def test_another_number_of_classes_starts_a_new_classifier(tmp_path):
    net = network()
    net.save_pretrained(tmp_path)
    loaded = load_folder(str(tmp_path), num_classes=3)
    assert (loaded.num_classes, loaded(images(64)).shape) == (3, (2, 3))
    assert loaded.model.boundaries == net.boundaries
    assert not any(name.startswith('model.legs.2.model.head') for name, _ in loaded.named_parameters())
    loaded.model.save_pretrained(tmp_path / 'again')
    assert Reassembled.from_pretrained(tmp_path / 'again').num_classes == 3
    whole = snnet.StitchableNet.from_pretrained(tmp_path, num_classes=3)
    assert whole.parameter_names(0) == {name for name, _ in whole.named_parameters()}, 'of the new head, too'


@pytest.mark.quick('vit-plain')
@pytest.mark.parametrize(
    ('name', 'joins'), [('cnn', 'plain'), ('vit', 'plain'), ('swin', 'plain'), ('cnn', 'published')]
)
def test_least_squares_finds_the_identity_between_legs_of_one_network(name, joins):
    net = reassemble(
        f'{name}[:3] > {name}[3:6] > {name}[6:]' if name != 'vit' else 'vit[:2] > vit[2:]', zoo(), joins=joins
    )
    fits = initialize_joins(net.eval(), zoo(), [images(64, 40, seed) for seed in (1, 2)], 80)
    assert [fit.layer for fit in fits] == list(range(len(net.joins)))
    assert max(fit.residual for fit in fits) < 1e-6
    torch.testing.assert_close(net(images(64)), zoo()[name](images(64)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    'legs',
    ['cnn[:4] > swin[3:6]', 'swin[:3] > vit[2:]', 'swin[:9] > next[7:]', 'vit[:2] > swin[7:9]', 'cnn[:4] > cnn[4:]'],
)
def test_the_residual_is_what_the_published_join_misses(legs):
    net, x = reassemble(legs, zoo()).eval(), images(64, 20)
    (fit,) = initialize_joins(net, zoo(), [x], 20)
    join, leg = net.join(0), net.plan[1]
    own = zoo()[leg.anchor]
    with torch.no_grad():
        out = relayout(join(net.run_to_join(x, 0)), join.end, Boundary(join.end.channels, join.end.grid, 'NHWC'))
        given = Normalization.of_model(net, 3)  # the images are prepared for the first leg's network
        converted = given and own.normalization and given != own.normalization
        seen = Renormalize(given, own.normalization)(x) if converted else x
        wanted = relayout(own.run(seen, None, leg.start), own.boundaries[leg.start], join.end)
        wanted = relayout(wanted, join.end, Boundary(join.end.channels, join.end.grid, 'NHWC'))
    out, wanted = (torch.where(y < 0, y / 0.1, y).double().flatten(0, -2) for y in (out, wanted))
    missed = (out - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert fit.residual == pytest.approx(float(missed), rel=1e-3, abs=1e-6)
    assert (out - wanted).square().sum() < wanted.square().sum()  # of a map to zero; without a bias, 1 is no bound


def test_memory_of_the_fit_does_not_hold_the_images_and_bad_input_is_refused():
    net = network()
    told = []
    initialize_joins(net, zoo(), [images(64, 6)], 6, told.append)
    assert told == [4, 2] * len(net.joins)
    for batches, options, hint in (
        (iter([images(64)]), {}, 'not an iterator'),
        ([], {}, 'no images'),
        ([images(64)], {'samples': 0}, 'at least one image'),
        ([images(64) * float('nan')], {}, 'not finite'),
        ([images(64)], {'ridge': -1.0}, 'ridge'),
    ):
        with pytest.raises(SnnetError, match=hint):
            initialize_joins(net, zoo(), batches, **options)
    with pytest.raises(SnnetError, match="the zoo lacks 'swin'"):
        initialize_joins(net, {'cnn': zoo()['cnn']}, [images(64)])


@pytest.mark.parametrize(
    ('legs', 'options', 'hint'),
    [
        ('', {}, 'not a valid leg'),
        ([], {}, 'at least one leg'),
        ('cnn[:2] > gnn[2:]', {}, "no network 'gnn' in the zoo, only cnn, swin"),
        ('cnn[:2] > swin[8:3]', {}, 'positions of swin run from 0 to 13'),
        ('cnn[:2] > swin[3:99]', {}, 'positions of swin run from 0 to 13'),
        ('cnn[:2] > swin[:3]', {}, 'is open'),
        ('cnn[:] > swin[3:]', {}, 'is open'),
        ('cnn[:2] > swin[2:]', {'stem': 'old'}, 'stem must be one of own, new'),
        ('cnn[:2] > swin[2:]', {'head': 'old'}, 'head must be one of auto, own, new'),
        ('cnn[:2] > swin[2:]', {'joins': 'wide'}, 'joins must be one of published, plain'),
        ('cnn[:2] > swin[2:]', {'num_classes': 0}, 'at least one class'),
        ('cnn[:2] > swin[2:5]', {'head': 'own'}, 'does not run to position 13'),
        ('cnn[:2] > swin[2:]', {'head': 'own', 'num_classes': 3}, 'knows 7 classes, not 3'),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(legs, options, hint):
    with pytest.raises(SnnetError, match=hint) as caught:
        reassemble(legs, zoo(), **options)
    assert '\n' not in str(caught.value)


def test_networks_of_different_image_sizes_are_refused():
    anchors = {'cnn': zoo()['cnn'], 'small': snnet.as_anchor(vit(), 'small')}
    with pytest.raises(CannotStitch, match='images of different sizes: cnn 3x64x64, small 3x32x32'):
        reassemble('cnn[:2] > small[2:]', anchors)


def test_legs_may_name_modules_and_strides():
    anchors = {'cnn': zoo()['cnn'], 'next': zoo()['next']}
    names = module_names(anchors['cnn'])
    assert names[:3] == ['layer1.0', 'layer1.1', 'layer2.0']
    text = 'cnn[layer1.0:layer2.0] >2> next[ 7 : 10 ] > next[13:]'
    assert parse_legs(text, anchors) == ([Leg('cnn', 0, 2), Leg('next', 7, 10), Leg('next', 13, None)], (2, 1))
    assert network_names(text) == ['cnn', 'next']
    net = reassemble(text, anchors)
    assert str(net) == 'cnn[:2] >2> next[7:10] > next[13:]'
    with pytest.raises(CannotStitch, match=r"'layer9\.0' is not a module of the line of cnn, which has layer1\.0"):
        parse_legs('cnn[layer9.0:] > next[3:]', anchors)


@pytest.mark.parametrize('joins', ['published', 'plain'])
def test_a_join_with_a_stride_is_a_convolution_that_least_squares_fits(joins, tmp_path):
    net = reassemble('cnn[:2] >2> cnn[3:]', zoo(), joins=joins).eval()
    join = net.join(0)
    assert (join.map.kernel_size, join.map.stride, join.end.grid) == ((2, 2), (2, 2), zoo()['cnn'].boundaries[3].grid)
    assert join.map.weight.shape == (join.end.channels, join.front.channels, 2, 2)
    x = images(64, 24)
    (fit,) = initialize_joins(net, zoo(), [x], 24)
    with torch.no_grad():
        own = zoo()['cnn']
        out, wanted = join(net.run_to_join(x, 0)), own.run(x, None, 3)
    if joins == 'published':
        out, wanted = (torch.where(y < 0, y / 0.1, y) for y in (out, wanted))
    out, wanted = (y.movedim(1, -1).flatten(0, -2).double() for y in (out, wanted))
    missed = (out - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert fit.residual == pytest.approx(float(missed), rel=1e-3, abs=1e-6)
    assert (out - wanted).square().sum() < wanted.square().sum()  # of a map to zero; without a bias, 1 is no bound
    net.save_pretrained(tmp_path)
    loaded = Reassembled.from_pretrained(tmp_path)
    assert (loaded.strides, str(loaded)) == ((2,), str(net))
    assert torch.equal(loaded(images(64)), net(images(64)))


@pytest.mark.parametrize(('legs', 'options', 'hint'), [
    ('cnn[:2] >0> next[7:]', {}, 'stride of a join must be 1 to 16, not 0'),
    ('vit[:2] >2> deit[2:]', {}, 'is a linear layer, which has no stride'),
    ('cnn[:4] >16> next[13:]', {}, 'needs a grid of at least 16x16'),
    ('cnn[:2] > next[7:]', {'strides': (1, 2)}, '2 legs have 1 joins between them, but 2 strides'),
])  # fmt: skip
def test_strides_that_cannot_be_are_refused(legs, options, hint):
    with pytest.raises(SnnetError, match=hint):
        reassemble(legs, zoo(), **options)


def test_a_network_without_head_gets_a_new_one_for_the_classes_asked_for():
    headless = snnet.as_anchor(vit(48, img_size=64, patch_size=16, num_heads=4, num_classes=0).eval(), 'ssl')
    anchors = {'cnn': zoo()['cnn'], 'ssl': headless}
    net = reassemble('cnn[:4] > ssl[1:]', anchors, num_classes=5)
    assert (net.options['head'], net(images(64)).shape) == ('new', (2, 5))
    with pytest.raises(CannotStitch, match='ssl has no head, so the number of classes is unknown: pass num_classes'):
        reassemble('cnn[:4] > ssl[1:]', anchors)
    with pytest.raises(CannotStitch, match='cannot end in the head of its network: it has none'):
        reassemble('cnn[:4] > ssl[1:]', anchors, num_classes=5, head='own')
    assert reassemble('ssl[:2] > cnn[4:]', anchors)(images(64)).shape == (2, 7)


@pytest.mark.slow  # a few seconds
def test_a_net_that_was_saved_with_seams_still_loads(tmp_path):
    net = network(joins='plain')
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    args = config['anchors'][0]['args']
    args['seams'] = args.pop('joins')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert torch.equal(Reassembled.from_pretrained(tmp_path)(images(64)), net(images(64)))


def test_a_line_is_a_table_of_its_positions():
    rows = line_rows(zoo()['cnn'])
    assert [row.position for row in rows] == list(range(len(zoo()['cnn'].boundaries)))
    assert [row.boundary for row in rows] == list(zoo()['cnn'].boundaries)
    model = zoo()['cnn'].model
    assert rows[2].params == sum(p.numel() for p in model.get_submodule(rows[2].module).parameters())
    assert rows[-1].params == sum(p.numel() for p in model.fc.parameters())
    assert len(format_line(rows).splitlines()) == len(rows) + 1
