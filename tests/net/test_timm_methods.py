"""A net and its stitches have timm's methods, and timm's own functions run on them."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.models._features import FeatureGetterNet
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

import snnet
from snnet.net.timm_registry import register_with_timm
from tests.helpers.families import CLASSES, every_net, family_net, images, shared_net
from tests.helpers.rounding import rounding
from tests.helpers.runs import write_images


def a_stitch(net):
    """A stitch with as many legs as there are, and among these one in the middle."""
    longest = max(len(stitch.legs) for stitch in net.stitches)
    found = [i for i, stitch in enumerate(net.stitches) if len(stitch.legs) == longest]
    return found[len(found) // 2]


@pytest.mark.slow_for('maps to windows')
@every_net
def test_features_and_head_give_the_logits_of_the_net_and_of_what_is_cut_out(name):
    net = shared_net(name)
    x, index = images(net.input_size[1]), a_stitch(net)
    logits = net(x, stitch=index)
    with net.using(index):
        features = net.forward_features(x)
        assert torch.equal(net.forward_head(features), logits)
        assert net.num_features in features.shape
        before = net.forward_head(features, pre_logits=True)
        assert before.shape == (2, net.head_hidden_size)
    alone = net.extract(index)
    assert torch.equal(alone.forward_features(x), features)
    assert torch.equal(alone.forward_head(features), logits)
    assert torch.equal(alone.forward_head(features, pre_logits=True), before)
    assert alone.num_classes == CLASSES


@pytest.mark.slow_for('convnext')
@pytest.mark.parametrize('name', ['vit', 'swin', 'resnet', 'levit', 'convnext'])
def test_features_of_an_anchor_are_those_of_the_network_of_timm(name):
    net = shared_net(name)
    x, model = images(net.input_size[1]), net.anchor(1).model
    with net.using(1):
        if name != 'convnext':  # its line is traced, and the last block is where its features end
            assert torch.equal(net.forward_features(x), model.forward_features(x))
            pre_logits = net.forward_head(net.forward_features(x), pre_logits=True)
            assert torch.equal(pre_logits, model.forward_head(model.forward_features(x), pre_logits=True))
        assert net.get_classifier() is model.get_classifier()


@every_net
def test_levels_have_the_widths_of_the_end_whatever_the_stitch(name):
    net = shared_net(name)
    x = images(net.input_size[1])
    for index in {0, len(net.anchors) - 1, a_stitch(net), len(net.stitches) - 1}:
        with net.using(index):
            info = net.feature_info
            final, levels = net.forward_intermediates(x)
            assert torch.equal(final, net.forward_features(x))
        assert len(info) == len(levels) > 0
        end = net.index_of(net.stitches[index].legs[-1].anchor)
        with net.using(end):
            assert [entry['num_chs'] for entry in net.feature_info] == [entry['num_chs'] for entry in info]
        for level, entry in zip(levels, info, strict=True):
            side = net.input_size[1] // entry['reduction']
            assert level.shape == (2, entry['num_chs'], side, side)


@pytest.mark.parametrize('name', ['vit', 'swin', 'resnet'])
def test_levels_of_an_anchor_are_those_of_the_network_of_timm(name):
    net = shared_net(name)
    x, model = images(net.input_size[1]), net.anchor(1).model
    with net.using(1):
        levels = net.forward_intermediates(x, intermediates_only=True)
        theirs = model.forward_intermediates(x, intermediates_only=True)[-len(levels) :]
        for ours, other in zip(levels, theirs, strict=True):
            assert torch.equal(ours, other if other.shape == ours.shape else other.permute(0, 3, 1, 2))
        last = net.forward_intermediates(x, 1, norm=True, stop_early=True, intermediates_only=True)
        assert len(last) == 1
        if name == 'vit':
            assert torch.equal(last[0], model.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0])
            pair = net.forward_intermediates(x, [0], return_prefix_tokens=True, output_fmt='NLC')[1][0]
            assert [part.shape for part in pair] == [(2, 16, 24), (2, 1, 24)]


def test_a_front_is_mapped_by_the_stitch_layer_of_the_nearest_join():
    net = shared_net('vit')
    index = next(i for i, stitch in enumerate(net.stitches) if len(stitch.legs) == 2 and stitch.legs[1].start == 3)
    front, end = net.stitches[index].legs
    other = next(s for s in net.stitches if len(s.legs) == 2 and s.legs[1].start == 2 and s.legs[0].stop <= front.stop)
    x = images(32)
    tokens = net.layer(other.layers[0])(net.anchor(0).run(x, None, other.legs[0].stop))
    with net.using(index):
        level = net.forward_intermediates(x, [1], output_fmt='NLC', intermediates_only=True)[0]
    assert torch.equal(level, tokens[:, 1:])
    assert end.anchor == 'large'


def test_what_is_cut_out_gives_the_same_levels_if_asked_to_take_the_layers_along():
    net = shared_net('three legs')
    index, x = a_stitch(net), images(32)
    with net.using(index):
        levels = net.forward_intermediates(x, intermediates_only=True)
    alone = net.extract(index, intermediates=True)
    for ours, other in zip(levels, alone.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(ours, other)
    bare = net.extract(index)
    assert torch.equal(bare.forward_intermediates(x, [-1])[1][0], levels[-1])
    assert [entry['num_chs'] for entry in bare.feature_info] == [level.shape[1] for level in levels]
    with pytest.raises(snnet.SnnetError, match=r'net\.extract\(\.\.\., intermediates=True\)'):
        bare.forward_intermediates(x, [0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'indices': [99]}, 'there are 4 levels of features: .*out of range'),
        ({'output_fmt': 'HWC'}, "output_fmt is 'NCHW' or 'NLC'"),
        ({'stop_early': True}, 'stop_early needs intermediates_only=True'),
    ],
)
def test_levels_and_formats_that_are_not_there(options, message):
    with pytest.raises(snnet.SnnetError, match=message):
        shared_net('vit').forward_intermediates(images(32), **options)


def test_the_data_config_is_that_of_the_anchors():
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3)
    own = resolve_model_data_config(net.anchor(0).model)
    assert own['mean'] == (0.5, 0.5, 0.5)  # not timm's default
    for network in (net, net.extract(3)):
        assert resolve_model_data_config(network) == own
        assert network.default_cfg['num_classes'] == 3
    net.preprocessing = {'crop_pct': 0.7, 'interpolation': 'bilinear'}
    assert resolve_model_data_config(net) == {**own, **net.preprocessing}
    names = {name for name, _ in net.named_modules()}
    assert {net.pretrained_cfg['classifier'], net.pretrained_cfg['first_conv']} <= names


def test_a_validation_loop_of_timm_runs_on_a_stitch(tmp_path):
    write_images(tmp_path / 'validation', 3, 2)
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32).eval()
    model = net.extract(4)
    config = resolve_model_data_config(model)
    dataset = create_dataset('', root=str(tmp_path), split='validation')
    loader = create_loader(
        dataset, batch_size=4, use_prefetcher=False, num_workers=0, pin_memory=False,
        **{name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')},
    )  # fmt: skip
    top1 = AverageMeter()
    with torch.inference_mode():
        for x, target in loader:
            top1.update(accuracy(model(x), target, topk=(1,))[0].item(), len(x))
    assert top1.count == 6
    files = sorted((tmp_path / 'validation').rglob('*.png'))
    right = [p.indices[0] == int(f.parent.name[5:]) for f, p in zip(files, net.predict(files, stitch=4), strict=True)]
    assert top1.avg == pytest.approx(100 * sum(right) / 6)


@pytest.mark.slow_for('convnext')
@pytest.mark.parametrize('name', ['vit', 'resnet', 'convnext', 'three legs'])
def test_layer_decay_grows_from_the_stem_to_the_head(name):
    net = shared_net(name)
    for network in (net, net.extract(a_stitch(net))):
        groups = create_optimizer_v2(network, 'sgd', lr=0.1, weight_decay=0.05, layer_decay=0.5).param_groups
        scale = {id(p): group['lr_scale'] for group in groups for p in group['params']}
        assert scale.keys() == {id(p) for p in network.parameters()}
        scales = {name: scale[id(p)] for name, p in network.named_parameters()}
        classifier = next(iter(network.get_classifier().parameters()))
        assert scale[id(classifier)] == 1 == max(scales.values())
        first = network.leg_runs()[0]
        stem = next(iter(first.anchor.survey.stem))
        assert scales[f'{first.name}.model.{stem}'] == min(scales.values()) < 0.5
        depths = network.group_matcher()
        assert {depths(name) for name in scales} == set(range(max(map(depths, scales)) + 1))
        assert len({network.group_matcher(coarse=True)(name) for name in scales}) < len(set(map(depths, scales)))


def test_timms_wrapper_for_dense_heads_takes_a_stitch():
    net = shared_net('resnet')
    alone, x = net.extract(len(net.stitches) - 1, intermediates=True), images(64)
    features = FeatureGetterNet(alone, out_indices=(0, -1))
    found = features(x)
    assert [level.shape[1] for level in found] == features.feature_info.channels()
    assert [64 // level.shape[2] for level in found] == features.feature_info.reduction()
    for level, other in zip(found, alone.forward_intermediates(x, [0, 2], intermediates_only=True), strict=True):
        assert torch.equal(level, other)


def test_what_timm_exempts_from_weight_decay_is_exempt_here():
    net = shared_net('vit')
    assert net.no_weight_decay() >= {f'anchors.{i}.model.{n}' for i in (0, 1) for n in ('pos_embed', 'cls_token')}
    groups = create_optimizer_v2(net.extract(3), 'sgd', lr=0.1, weight_decay=0.05).param_groups
    exempt = {id(p) for group in groups if group['weight_decay'] == 0 for p in group['params']}
    assert exempt


def test_checkpointing_is_switched_for_all_anchors_and_changes_no_gradient():
    net, x = family_net('vit'), images(32)
    model = net.extract(a_stitch(net)).train()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert all(anchor.checkpointing is enable for anchor in model.anchors)
        model.zero_grad()
        model(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.quick('vit')
@pytest.mark.parametrize('name', ['vit', 'resnet', 'deit distilled', 'convnext'])
def test_a_net_with_reset_classifiers_trains_saves_and_loads(name, tmp_path):
    net = family_net(name)
    net.class_names = list('abcdefg')
    before = [record.params for record in net.records]
    net.reset_classifier(3)
    assert (net.num_classes, net.class_names) == (3, None)
    x = images(net.input_size[1])
    assert net(x, stitch=2).shape == (2, 3)
    assert net.extract(2).get_classifier().out_features == 3
    assert net.choose(flops=1e12).record.params < before[net.choose(flops=1e12).record.stitch]
    net.save_pretrained(tmp_path)
    again = snnet.StitchableNet.from_pretrained(tmp_path)
    assert torch.equal(again(x, stitch=2), net(x, stitch=2))


def test_a_stitch_gets_a_new_classifier_and_refuses_unknown_pooling():
    alone = family_net('vit').extract(4)
    alone.reset_classifier(2)
    assert alone(images(32)).shape == (2, 2)
    assert alone.pretrained_cfg['num_classes'] == 2
    with pytest.raises(snnet.SnnetError, match='large refuses another classifier'):
        alone.reset_classifier(2, 'median')
    with pytest.raises(snnet.SnnetError, match='num_classes is at least 0, but -1 was given'):
        alone.reset_classifier(-1)


@pytest.mark.slow_for('swin', 'convnext')
@pytest.mark.parametrize('name', ['vit', 'swin', 'resnet', 'convnext'])
def test_what_was_cut_out_has_no_stem_and_gets_a_new_classifier_all_the_same(name):
    net = shared_net(name)
    alone, x = net.extract(len(net.stitches) - 1), images(net.input_size[1])
    width = alone.head_hidden_size
    before = alone.forward_head(alone.forward_features(x), pre_logits=True)
    alone.reset_classifier(3)
    assert alone(x).shape == (2, 3)
    depths, end = alone.group_matcher(), alone.leg_runs()[-1]
    new = {f'{end.name}.model.{key}' for key in end.anchor.survey.head if 'head' in key or 'fc' in key}
    assert new <= {key for key, _ in alone.named_parameters()}
    assert {depths(key) for key in new} == {max(depths(key) for key, _ in alone.named_parameters())}
    alone.reset_classifier(0)
    assert torch.equal(alone(x), before)
    assert alone.head_hidden_size == width


def test_an_average_of_timm_follows_a_stitch():
    alone = family_net('vit').extract(4)
    average = ModelEmaV3(alone, decay=0.5)
    with torch.no_grad():
        next(alone.parameters()).add_(1)
    average.update(alone)
    first = next(average.module.parameters())
    assert torch.allclose(first, next(alone.parameters()) - 0.5, rtol=0, atol=rounding(torch.float32, 4))


@pytest.mark.slow  # a few seconds
def test_timm_makes_saved_nets_by_name_and_by_folder(tmp_path):
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32).eval()
    net.save_pretrained(tmp_path)
    register_with_timm()
    register_with_timm()
    x = images(32)
    for name, options in (('snnet', {'folder': str(tmp_path)}), (f'local-dir:{tmp_path}', {})):
        model = timm.create_model(name, stitch=4, **options).eval()
        assert torch.equal(model(x), net(x, stitch=4))
        assert len(model.forward_intermediates(x)[1]) == len(model.feature_info)
        assert torch.equal(timm.create_model(name, **options)(x), net(x))
    assert timm.create_model('snnet', folder=str(tmp_path), stitch=4, num_classes=5)(x).shape == (2, 5)
    with pytest.raises(snnet.SnnetError, match="a saved net has no option 'drop_rate'"):
        timm.create_model('snnet', folder=str(tmp_path), drop_rate=0.1)
    with pytest.raises(snnet.SnnetError, match='needs the folder of a saved one'):
        timm.create_model('snnet')
    with pytest.raises(snnet.UnknownStitch, match='stitch ids are the integers 0 to'):
        timm.create_model('snnet', folder=str(tmp_path), stitch=99)
