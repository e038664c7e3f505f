"""Parameters that belong to single stitches: no anchor runs them, and every way of running a stitch does."""

from __future__ import annotations

import copy
import dataclasses
import io
import json

import pytest
import torch
from safetensors.torch import save_file

import snnet
from snnet import NoWeights, SnnetError, StitchableNet, UnknownStitch
from snnet.exporting.prepared_stitch import PreparedStitch
from snnet.net.own_parameters import OwnParameters, names_behind
from snnet.net.shared_prefixes import all_logits
from snnet.saving.config_json import FORMATS
from tests.helpers.crowd import in_threads
from tests.helpers.families import _NETS, images, shared_net, swept

FAMILIES = ('resnet', 'vit', 'maps to windows', 'three legs')
each_family = pytest.mark.parametrize('name', swept(FAMILIES, ('resnet', 'vit')))
NORMS = ('norm', 'bn')


def logits(net, ids=None, size=None):
    x = images(size or net.input_size[1], 3)
    with torch.no_grad():
        return {i: net(x, stitch=i) for i in (range(len(net.stitches)) if ids is None else ids)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[i], second[i]) for i in first)


def own_values(net, stitches, seed=0):
    """Stitch layers and norms behind the join, with noise."""
    generator, held = torch.Generator().manual_seed(seed), dict(net.named_parameters())
    values = {}
    for stitch in stitches:
        names = sorted(frozenset().union(*names_behind(net, stitch)))
        chosen = [n for n in names if n.startswith('stitch_layers') or any(w in n for w in NORMS)]
        noise = {name: torch.randn(held[name].shape, generator=generator) for name in chosen}
        values[stitch] = {name: held[name].detach() + 0.1 * noise[name] for name in chosen}
    return values


def adapted_ids(net):
    return [i for i, stitch in enumerate(net.stitches) if len(stitch.legs) > 1][::2]


@pytest.fixture(scope='module')
def nets():
    """Nets in which every other stitch has parameters of its own."""

    class Made(dict):
        def __missing__(self, name):
            net = self[name] = _NETS[name]()
            net.set_own_parameters(OwnParameters(net, own_values(net, adapted_ids(net))))
            return net

    return Made()


@each_family
def test_a_stitch_runs_its_own_parameters_and_all_others_give_the_same_bits_as_before(nets, name):
    net, plain = nets[name], shared_net(name)
    before, after = logits(plain), logits(net)
    adapted = adapted_ids(net)
    assert [i for i in before if not torch.equal(before[i], after[i])] == adapted
    by_hand = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter_name, value in net.own_parameters.values[adapted[-1]].items():
            by_hand.get_parameter(parameter_name).copy_(value)
    assert same(logits(by_hand, adapted[-1:]), logits(net, adapted[-1:]))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


@pytest.mark.slow  # seconds
@each_family
def test_every_way_of_running_a_stitch_gives_the_same_bits(nets, name):
    net = nets[name]
    expected, x = logits(net), images(net.input_size[1], 3)
    with torch.no_grad():
        for suffix_batch in (0, 100):
            shared = dict(all_logits(net, x, range(len(net.stitches)), suffix_batch))
            plain = [i for i in expected if i not in net.own_parameters.stitches]
            exact = expected if suffix_batch == 0 else {i: expected[i] for i in net.own_parameters.stitches}
            assert same({i: shared[i] for i in exact}, exact)
            for i in plain:
                torch.testing.assert_close(shared[i], expected[i], rtol=1e-4, atol=1e-4)
        assert same({i: net.extract(i)(x) for i in expected}, expected)
        assert same({i: PreparedStitch(net, i, 'pt2', None).module(x) for i in expected}, expected)
    assert same(logits(copy.deepcopy(net)), expected)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert same(logits(torch.load(file, weights_only=False)), expected)


def test_many_threads_run_different_stitches(nets):
    net = nets['resnet']
    expected = logits(net)
    assert all(in_threads(lambda offset: same(logits(net, list(expected)[offset % 3 :: 3]),
                                              {i: expected[i] for i in list(expected)[offset % 3 :: 3]})))  # fmt: skip


def test_an_extracted_stitch_has_ordinary_modules_and_as_many_parameters_as_before(nets):
    net = nets['resnet']
    for stitch in adapted_ids(net)[:2]:
        module = net.extract(stitch)
        assert not any(hasattr(type(m), '_plain') for m in module.modules())
        assert sum(p.numel() for p in module.parameters()) == net.records[stitch].params


@pytest.mark.slow  # seconds
def test_compiled_blocks_run_the_parameters_of_each_stitch_without_another_graph(nets):
    net = copy.deepcopy(nets['vit'])
    expected, x = logits(net), images(32, 3)
    snnet.compile_blocks(net, backend='eager')
    first, second, *_ = adapted_ids(net)
    with torch.inference_mode():
        for i in (0, 1, first):
            assert torch.equal(net(x, stitch=i), expected[i])
        with torch.compiler.set_stance('fail_on_recompile'):
            assert same({i: net(x, stitch=i) for i in (second, first, first + 1)},
                        {i: expected[i] for i in (second, first, first + 1)})  # fmt: skip


@pytest.mark.quick('vit')
@pytest.mark.parametrize('name', ['resnet', 'vit'])
def test_a_folder_and_a_state_dict_hold_them(nets, name, tmp_path):
    net = nets[name]
    expected = logits(net)
    net.save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path)
    assert same(logits(loaded), expected)
    assert loaded.own_parameters.digest() == net.own_parameters.digest()
    fresh = _NETS[name]()
    fresh.load_state_dict(net.state_dict())
    assert same(logits(fresh), expected)
    text = (tmp_path / 'README.md').read_text()
    assert f'{len(adapted_ids(net))} stitches have parameters of their own' in text


def test_moving_a_net_takes_them_along(nets):
    net = copy.deepcopy(nets['vit']).double()
    assert {value.dtype for value in net.own_parameters.tensors().values()} == {torch.float64}
    stitch = adapted_ids(net)[0]
    with torch.no_grad():
        found = net(images(32, 3).double(), stitch=stitch).float()
    torch.testing.assert_close(found, logits(nets['vit'], [stitch])[stitch], rtol=1e-4, atol=1e-4)


def in_place(net):
    next(iter(net.own_parameters.tensors().values())).add_(1)


def weights(net):
    with torch.no_grad():
        net.anchor(1).model.fc.bias.add_(1)


def train_mode(net):
    net.train()


def foreign_state(net):
    state = net.state_dict()
    net.load_state_dict({name: value for name, value in state.items() if not name.startswith('own_parameters.')})


def initialize(net):
    snnet.initialize(net, [images(64, 10)], samples=10)


@pytest.mark.parametrize('change', [in_place, weights, train_mode, foreign_state, initialize])
def test_they_are_never_used_with_other_weights(nets, change, caplog):
    net = copy.deepcopy(nets['resnet'])
    change(net)
    net.eval()
    assert net.own_parameters is None
    plain = copy.deepcopy(net)
    assert same(logits(net, adapted_ids(net)[:1]), logits(plain, adapted_ids(net)[:1]))
    assert not any(hasattr(type(m), '_plain') for m in net.modules())
    assert 'own' in caplog.text or 'single stitches' in caplog.text


def test_a_value_written_past_the_counters_is_noticed_when_the_net_is_saved(nets, tmp_path):
    net = copy.deepcopy(nets['resnet'])
    next(iter(net.own_parameters.tensors().values())).data.view(-1)[1] += 1
    net.save_pretrained(tmp_path)
    assert net.own_parameters is None
    assert not (tmp_path / 'own_parameters.safetensors').exists()


def test_setting_them_drops_the_accuracies_of_changed_stitches_only(nets):
    net = copy.deepcopy(nets['resnet'])
    net.records = [dataclasses.replace(record, top1=50.0) for record in net.records]
    values, (first, *_) = dict(net.own_parameters.values), adapted_ids(net)
    values[first] = own_values(net, [first], seed=7)[first]
    net.set_own_parameters(OwnParameters(net, values))
    assert [record.stitch for record in net.records if record.top1 is None] == [first]
    net.set_own_parameters(None)
    assert [record.stitch for record in net.records if record.top1 is None] == adapted_ids(net)


@pytest.mark.slow  # seconds
def test_statistics_and_own_parameters_go_together(tmp_path):
    net = _NETS['resnet']()
    first, second, *_ = adapted_ids(net)
    snnet.recalibrate(net, [images(64, 4)], samples=4, shares=[1], stitches=[0, first, first + 1])
    net.set_own_parameters(OwnParameters(net, own_values(net, [first, second])))
    expected = logits(net)
    for suffix_batch in (0, 100):
        with torch.no_grad():
            shared = dict(all_logits(net, images(64, 3), range(len(net.stitches)), suffix_batch))
        assert same({i: shared[i] for i in (0, first, first + 1, second)},
                    {i: expected[i] for i in (0, first, first + 1, second)})  # fmt: skip
    assert torch.equal(net.extract(first)(images(64, 3)), expected[first])
    net.save_pretrained(tmp_path)
    assert same(logits(StitchableNet.from_pretrained(tmp_path)), expected)
    with pytest.raises(SnnetError, match=f'stitch {first} has parameters of its own'):
        snnet.recalibrate(net, [images(64, 4)], samples=4, stitches=[first])
    snnet.recalibrate(net, [images(64, 4, seed=1)], samples=4, shares=[1])
    after = logits(net)
    assert torch.equal(after[second], expected[second])
    assert not torch.equal(after[1], expected[1])


def test_what_cannot_belong_to_a_stitch_is_refused_in_one_sentence():
    net = shared_net('resnet')
    stitch = adapted_ids(net)[0]
    values = own_values(net, [stitch])[stitch]
    name, value = next(iter(values.items()))
    front = 'anchors.0.model.conv1.weight'
    with pytest.raises(SnnetError, match=f'stitch {stitch} .* has no parameter {front} behind a join'):
        OwnParameters(net, {stitch: {front: net.get_parameter(front)}})
    with pytest.raises(SnnetError, match='stitch 1 .* has no parameter .* behind a join'):
        OwnParameters(net, {1: {name: value}})
    with pytest.raises(SnnetError, match=f'{name} of stitch {stitch} is 3, but the net has'):
        OwnParameters(net, {stitch: {name: torch.zeros(3)}})
    with pytest.raises(UnknownStitch):
        OwnParameters(net, {99: values})
    updated = copy.deepcopy(net)
    updated.layer(0).start_update(2)
    with pytest.raises(SnnetError, match='fold or merge these first'):
        OwnParameters(updated, {stitch: values})


def test_a_damaged_file_is_refused_and_an_older_snnet_would_not_read_the_folder(nets, tmp_path):
    net = copy.deepcopy(nets['vit'])
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['format'] == FORMATS[1]
    assert config['own_parameters']['count'] == net.own_parameters.count()
    save_file({'3.nothing': torch.zeros(2)}, tmp_path / 'own_parameters.safetensors')
    with pytest.raises(NoWeights, match='own_parameters.safetensors is damaged or was replaced'):
        StitchableNet.from_pretrained(tmp_path)
    del config['sha256']['own_parameters.safetensors']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(NoWeights, match='own_parameters.safetensors does not fit its config.json: stitch 3'):
        StitchableNet.from_pretrained(tmp_path)
    net.set_own_parameters(None)
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['format'] == FORMATS[0]
    assert not (tmp_path / 'own_parameters.safetensors').exists()


def test_forged_own_parameters_are_refused_in_a_sentence(nets, tmp_path, caplog):
    path, tensors = tmp_path / 'own_parameters.safetensors', nets['vit'].own_parameters.tensors()
    nets['vit'].save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    del config['sha256'][path.name]
    (tmp_path / 'config.json').write_text(json.dumps(config))
    place = next(iter(tensors))
    told = config.pop('own_parameters')
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'sha256': {**config['sha256'], path.name: '0' * 64}}))
    assert StitchableNet.from_pretrained(tmp_path).own_parameters is None
    assert 'own_parameters.safetensors is not used: config.json says nothing of it but its SHA-256' in caplog.text
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'own_parameters': told}))
    for forged, said in (
        ({**tensors, place: tensors[place].long()}, 'is of type int64, but the net has float32 there'),
        ({**tensors, f'0{place}': tensors[place]}, 'does not begin with the id of a stitch'),
        ({place: tensors[place]}, r'it holds .* parameters \(stitches: 1\), not .* \(stitches: 5\), as listed'),
    ):
        save_file({name: tensor.clone() for name, tensor in forged.items()}, path)
        with pytest.raises(NoWeights, match=f'own_parameters.safetensors does not fit its config.json: .*{said}'):
            StitchableNet.from_pretrained(tmp_path)
