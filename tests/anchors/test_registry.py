from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import snnet
from snnet import (
    Anchor,
    Boundary,
    CannotStitch,
    SnnetError,
    Stage,
    as_anchor,
)
from tests.helpers.families import FAMILIES, NETWORKS, every_network, images, shake, vit

every_family = pytest.mark.parametrize('name', [f'{family}, large' for family in FAMILIES])


def wrapped(name, **args):
    size, make = NETWORKS[name]
    model = shake(make(**args))
    anchor = as_anchor(model, name, input_size=(3, size, size))
    assert anchor.survey.head, 'measured here, with autograd on, so that tests may turn it off'
    return anchor, model, images(size)


@pytest.mark.slow_for('regnet, large')
@every_network
def test_an_anchor_computes_what_the_model_computes_in_eval_mode(name):
    anchor, model, x = wrapped(name)
    model.eval()
    with torch.no_grad():
        assert (anchor(x) - model(x)).abs().max() == 0


@pytest.mark.slow_for('convnext, small', 'regnet, large')
@every_network
def test_an_anchor_computes_what_the_model_computes_in_train_mode(name):
    _, model, x = wrapped(name, drop_path_rate=0.5)
    twin = copy.deepcopy(model)
    anchor = as_anchor(twin, name, input_size=tuple(x.shape[1:]))
    model.train()
    anchor.train()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert (anchor(x) - expected).abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    torch.manual_seed(2)
    assert not torch.equal(model(x), expected), 'drop path is not at work, so this compared nothing random'


@pytest.mark.slow_for('regnet, large')
@every_network
def test_an_anchor_keeps_the_model_and_its_names(name):
    anchor, model, _ = wrapped(name)
    assert anchor.model is model
    assert list(anchor.state_dict()) == [f'model.{key}' for key in model.state_dict()]


@pytest.mark.slow_for('regnet, large', 'convnext, small')
@every_network
def test_runs_from_position_to_position_chain_to_the_whole(name):
    anchor, model, x = wrapped(name)
    model.eval()
    with torch.no_grad():
        y, at = x, None
        for position in range(len(anchor.boundaries)):
            y, at = anchor.run(y, at, position), position
        assert torch.equal(anchor.run(y, at), model(x))
        middle = len(anchor.line()) // 2
        assert torch.equal(anchor.run(anchor.run(x, stop=middle), start=middle), model(x))


@pytest.mark.slow_for('regnet, large')
@every_network
def test_boundaries_are_what_flows(name):
    anchor, _, x = wrapped(name)
    anchor.eval()
    assert len(anchor.boundaries) == len(anchor.line()) + 1
    with torch.no_grad():
        for position, boundary in enumerate(anchor.boundaries):
            channels, (rows, columns) = boundary.channels, boundary.grid
            shape = {
                'NCHW': (channels, rows, columns),
                'NHWC': (rows, columns, channels),
                'NLC': (boundary.prefix + rows * columns, channels),
            }[boundary.layout]
            assert tuple(anchor.run(x, stop=position).shape[1:]) == shape
            assert rows == columns


def test_a_token_grid_has_the_shape_of_the_image():
    anchor = as_anchor(vit(img_size=(32, 64)), input_size=(3, 32, 64))
    assert anchor.boundaries[0] == Boundary(16, (4, 8), 'NLC', 1)


@pytest.mark.parametrize(
    ('name', 'prefix'),
    [('vit, small', 1), ('vit without class token, small', 0), ('registers, small', 4), ('deit distilled, small', 2)],
)
def test_prefix_tokens_are_counted_as_timm_counts_them(name, prefix):
    assert wrapped(name)[0].boundaries[0] == Boundary(16, (4, 4), 'NLC', prefix)


@pytest.mark.parametrize('mode', [True, False])
def test_measuring_leaves_modes_weights_and_caches_alone(mode):
    for name in ('levit, large', 'resnet, small'):
        anchor, model, x = wrapped(name)
        model.train(mode)
        with torch.no_grad():
            model(x)
        before = copy.deepcopy(model.state_dict())
        anchor.survey  # noqa: B018
        assert model.training is mode
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        with torch.no_grad():
            assert model.eval()(x).isfinite().all()


def spans(anchor):
    last = len(anchor.line())
    return [(None, None), (None, 0), (None, last // 2), (last // 2, None), (1, last - 1), (last, None)]


@pytest.mark.slow_for('convnext, large', 'regnet, large', 'regnet z, large')
@every_family
def test_parameter_names_are_those_that_get_a_gradient(name):
    anchor, _, x = wrapped(name)
    for start, stop in spans(anchor):
        features = x if start is None else anchor.run(x, stop=start).detach()
        anchor.eval().zero_grad()
        anchor.run(features, start, stop).sum().backward()
        reached = {key for key, p in anchor.model.named_parameters() if p.grad is not None}
        assert anchor.parameter_names(start, stop) == reached


@pytest.mark.quick('vit, large', 'deit-3, large', 'vit without class token, large', 'deit distilled, large')
@every_family
def test_a_cut_runs_the_same_and_holds_its_own_parameters_only(name):
    anchor, _, x = wrapped(name)
    anchor.eval()
    with torch.no_grad():
        for start, stop in spans(anchor):
            features = x if start is None else anchor.run(x, stop=start)
            part = anchor.cut(start, stop)
            assert torch.equal(part.run(features, start, stop), anchor.run(features, start, stop))
            assert {key for key, _ in part.model.named_parameters()} == anchor.parameter_names(start, stop)


@pytest.mark.parametrize('off', [torch.no_grad, torch.inference_mode])
def test_measuring_with_autograd_off_finds_the_same(off):
    with off():
        measured = as_anchor(vit(), 'vit, small', input_size=(3, 32, 32)).survey
    assert measured == wrapped('vit, small')[0].survey


def test_a_cut_is_a_copy():
    anchor, _, x = wrapped('vit, small')
    anchor.eval()
    with torch.no_grad():
        part = anchor.cut(None, 2)
        before = part.run(x, None, 2)
        for parameter in anchor.parameters():
            parameter.zero_()
        assert torch.equal(part.run(x, None, 2), before)


def test_what_was_cut_out_refuses_to_run_and_says_why():
    anchor, _, x = wrapped('vit, small')
    with pytest.raises(SnnetError, match=r'blocks\.2 was cut out'):
        anchor.cut(None, 2).run(x, None, 3)


def test_a_replaced_block_takes_part_at_once():
    anchor, model, x = wrapped('vit, small')
    model.eval()
    model.blocks[1] = nn.Identity()
    with torch.no_grad():
        assert torch.equal(anchor(x), model(x))


class Tower(nn.Sequential):
    num_classes = 5


class TowerAnchor(Anchor):
    def stem(self, x):
        return self.model[0](x)

    def stages(self):
        return [Stage(list(self.model[1]))]

    def head(self, x):
        return self.model[2](x)


def make_tower():
    blocks = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    return Tower(nn.Conv2d(3, 4, 2, 2), blocks, nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))


def test_a_registered_adapter_lets_an_outside_class_in():
    assert not isinstance(as_anchor(make_tower(), input_size=(3, 8, 8)), TowerAnchor)
    snnet.register_adapter(Tower, TowerAnchor)
    anchor = as_anchor(make_tower(), 'tower', input_size=(3, 8, 8))
    assert anchor.boundaries == (Boundary(4, (4, 4), 'NCHW'),) * 4
    assert anchor.num_classes == 5


class MistakenAnchor(TowerAnchor):
    def stem(self, x):
        return self.model.no_such_part(x)


def test_a_mistake_in_an_adapter_is_told_as_what_it_is():
    anchor = MistakenAnchor(make_tower(), 'mistaken', (3, 8, 8))
    with pytest.raises((AttributeError, SnnetError), match='no_such_part'):
        anchor.boundaries  # noqa: B018


def test_a_network_that_does_not_say_its_input_size_is_refused():
    with pytest.raises(SnnetError, match='input size'):
        as_anchor(FAMILIES['levit'].small())


def test_name_size_classes_and_source_default_to_what_timm_noted():
    anchor = as_anchor(timm.create_model('test_vit', num_classes=3))
    assert (anchor.name, anchor.input_size, anchor.num_classes) == ('test_vit', (3, 160, 160), 3)
    assert anchor.source == snnet.Source('test_vit.r160_in1k', {'num_classes': 3})


def test_tokens_that_form_no_grid_are_refused():
    model = vit()
    model.num_prefix_tokens = 0
    with pytest.raises(CannotStitch, match='odd: 17 tokens do not form a grid shaped like 32x32'):
        as_anchor(model, 'odd', input_size=(3, 32, 32)).boundaries  # noqa: B018


def test_a_model_made_for_another_image_size_is_measured_at_that():
    assert as_anchor(timm.create_model('test_vit', img_size=96)).boundaries[0].grid == (6, 6)
    assert as_anchor(timm.create_model('test_resnet')).input_size == (3, 160, 160)


class NeedsNumbers(Tower):
    """Looks at its features, which have no values on the meta device."""


class NeedsNumbersAnchor(TowerAnchor):
    def stem(self, x):
        return self.model[0](x) if float(x.detach().sum()) < 1e9 else x


def test_a_network_that_needs_real_numbers_is_measured_on_a_real_copy():
    blocks = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    tower = NeedsNumbers(nn.Conv2d(3, 4, 2, 2), blocks, nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    anchor = NeedsNumbersAnchor(tower, 'needs numbers', (3, 8, 8))
    assert anchor.boundaries == (Boundary(4, (4, 4), 'NCHW'),) * 4
    assert anchor.parameter_names() == {name for name, _ in tower.named_parameters()}


@pytest.mark.filterwarnings('ignore:.torch.jit.script')
def test_a_scripted_network_is_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    with pytest.raises(SnnetError, match=r'as_anchor takes a network before torch\.jit\.script'):
        snnet.as_anchor(scripted, 'scripted', input_size=(3, 32, 32))
