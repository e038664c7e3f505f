"""What is known of a net goes when its weights or modules change, and stays when they only move."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import snnet
from snnet import LatencyTable, SnnetError, StitchableNet
from snnet.budget.latency_table import Latency
from snnet.evaluation.evaluate import Evaluation
from snnet.net.hardware import setup_of
from snnet.utils.distributed import Ranks
from tests.helpers.families import family_net, images
from tests.helpers.runs import eval_settings


def evaluated(net):
    """A net with accuracies, BatchNorm statistics and a latency table."""
    snnet.recalibrate(net, [images(64, 4)], samples=4, stitches=[0, 2, 4], shares=[1])
    net.records = [replace(record, top1=50.0 + record.stitch, n=100) for record in net.records]
    row = Latency(1.0, 0.9, 1.1, 100)
    net.add_table(LatencyTable(setup_of(net), 1, net.fingerprint, dict.fromkeys(range(len(net.stitches)), row)))
    return net


@pytest.fixture(scope='module')
def cnn():
    return evaluated(family_net('resnet'))


def knows(net):
    """Whether a net still has accuracies, statistics and latencies; all of them, or none."""
    found = {net.records[0].top1 is not None, net.statistics is not None, bool(net.latency_tables)}
    assert len(found) == 1
    return found.pop()


def weight_of(net):
    return net.anchor(0).model.layer1[0].conv1.weight


def scale_data(net):
    for parameter in net.parameters():
        parameter.data.mul_(1.5)


def replace_data(net):
    weight_of(net).data = weight_of(net).data * 2


def one_value_without_a_counter(net):
    weight_of(net).data.view(-1)[7] += 1


def copy_in_place(net):
    with torch.no_grad():
        weight_of(net).copy_(torch.ones_like(weight_of(net)))


def load_others(net):
    net.load_state_dict({name: 2 * tensor for name, tensor in family_net('resnet').state_dict().items()})


def assign_others(net):
    state = {name: 2 * tensor for name, tensor in family_net('resnet').state_dict().items()}
    net.load_state_dict(state, assign=True)


def running_mean(net):
    net.anchor(0).model.bn1.running_mean.add_(1)


def new_block(net):
    net.anchor(0).model.layer1[1] = nn.Identity()


def new_activation(net):
    net.anchor(0).model.act1 = nn.SiLU()


def new_head(net):
    net.anchor(0).model.reset_classifier(7)


def prune_a_layer(net):
    prune.l1_unstructured(net.anchor(0).model.layer1[0].conv1, 'weight', amount=0.5)


def weight_norm(net):
    parametrizations.weight_norm(net.anchor(0).model.layer1[0].conv1)


def adapter(net):
    class LoRA(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.down = nn.Linear(inner.in_features, 2, bias=False)
            self.up = nn.Linear(2, inner.out_features, bias=False)

        def forward(self, x):
            return self.inner(x) + self.up(self.down(x))

    net.anchor(0).model.fc = LoRA(net.anchor(0).model.fc)


CHANGES = [
    scale_data, replace_data, copy_in_place, load_others, assign_others, running_mean, new_block, new_activation,
    new_head, prune_a_layer, weight_norm, adapter,
]  # fmt: skip


@pytest.mark.parametrize('change', CHANGES)
def test_what_is_known_goes_with_the_weights_and_modules(cnn, change, caplog):
    net = copy.deepcopy(cnn)
    assert knows(net)
    change(net)
    assert not knows(net)
    assert net.fingerprint is None
    assert all(name in caplog.text for name in ('evaluate again', 'recalibrate again', 'profile again'))


def test_single_values_that_no_quick_look_sees_are_found_on_saving(cnn, tmp_path):
    net = copy.deepcopy(cnn)
    assert knows(net)
    one_value_without_a_counter(net)
    net.save_pretrained(tmp_path)
    assert not knows(net)
    assert json.loads((tmp_path / 'config.json').read_text())['stitches'][0].get('top1') is None


def start_evaluation(net, folder):
    Evaluation(eval_settings(folder), net, folder / 'evaluation', Ranks(0, 1, torch.device('cpu')))


def profile_one(net, folder):
    snnet.profile(net, stitches=[3], predict=False, minutes=0)
    assert {table.weights for table in net.latency_tables} == {None}


def export_one(net, folder):
    (folder / 'file').touch()
    with pytest.raises(SnnetError, match='is a file'):  # after the look at the weights
        snnet.export(net, 3, folder / 'file' / 'stitch.pt2')


def export_all(net, folder):
    with pytest.raises(SnnetError, match='no stitch has been evaluated'):
        snnet.export_set(net, folder, 3)


def recalibrate_one(net, folder):
    snnet.recalibrate(net, [images(64)], samples=1, stitches=[3], shares=[0])


@pytest.mark.parametrize('act', [start_evaluation, profile_one, export_one, export_all, recalibrate_one])
def test_single_values_that_no_quick_look_sees_are_found_wherever_results_go_together(cnn, tmp_path, act, caplog):
    net = copy.deepcopy(cnn)
    assert knows(net)
    one_value_without_a_counter(net)
    assert net.records[0].top1 == 50, 'the quick look does not see it'
    act(net, tmp_path)
    assert net.records[0].top1 is None
    assert 'evaluate again' in caplog.text


def freeze_and_thaw(net):
    net.anchor(0).freeze()
    net.anchor(0).frozen = False
    net.requires_grad_(True)


def same_values(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.clone())


def same_tensors_elsewhere(net):
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()


def convert_and_back(net):
    net.double().float()


def channels_last(net):
    net.to(memory_format=torch.channels_last)


def run(net):
    with torch.no_grad():
        net(images(64), stitch=3)


@pytest.mark.parametrize(
    'change', [freeze_and_thaw, same_values, same_tensors_elsewhere, convert_and_back, channels_last, run]
)
def test_what_is_known_stays_where_the_weights_only_move(cnn, change, caplog):
    net = copy.deepcopy(cnn)
    change(net)
    assert knows(net)
    assert not caplog.records


def test_copies_and_pickles_keep_what_is_known_unless_the_weights_had_changed(cnn):
    assert knows(copy.deepcopy(cnn))
    file = io.BytesIO()
    torch.save(cnn, file)
    file.seek(0)
    assert knows(torch.load(file, weights_only=False))
    net = copy.deepcopy(cnn)
    weight_of(net).data.mul_(2)
    assert not knows(copy.deepcopy(net))


@pytest.mark.slow  # seconds
def test_accuracies_put_in_one_by_one_belong_to_the_weights_of_that_moment(tmp_path):
    net = family_net('vit')
    net.records[0] = replace(net.records[0], top1=80.0, n=10)
    with torch.no_grad():
        net.layer(0).weight.mul_(2)
    net.records[1] = replace(net.records[1], top1=81.0, n=10)
    assert [record.top1 for record in net.records[:2]] == [None, 81.0]
    net.save_pretrained(tmp_path)
    assert [record.top1 for record in StitchableNet.from_pretrained(tmp_path).records[:2]] == [None, 81.0]


@pytest.mark.slow  # seconds
def test_training_after_loading_loses_the_accuracies(tmp_path, caplog):
    net = family_net('vit')
    net.records[0] = replace(net.records[0], top1=80.0, n=100)
    net.save_pretrained(tmp_path / 'before')
    net = StitchableNet.from_pretrained(tmp_path / 'before')
    assert net.records[0].top1 == 80.0
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    net.train()
    net(images(32), stitch=0).sum().backward()
    optimizer.step()
    net.eval().save_pretrained(tmp_path / 'after')
    assert 'top1' not in json.loads((tmp_path / 'after' / 'config.json').read_text())['stitches'][0]
    assert '80' not in (tmp_path / 'after' / 'README.md').read_text().split('## Frontier')[1]
    assert 'loses its accuracies (evaluate again)' in caplog.text


@pytest.mark.slow  # seconds
def test_the_state_dict_carries_the_statistics(cnn):
    other = family_net('resnet')
    x = images(64, 2, 1)
    with torch.no_grad():
        assert not torch.equal(other(x, stitch=2), cnn(x, stitch=2))
        assert str(other.load_state_dict(cnn.state_dict())) == '<All keys matched successfully>'
        assert all(torch.equal(other(x, stitch=i), cnn(x, stitch=i)) for i in range(len(cnn.stitches)))
        plain = {name: value for name, value in cnn.state_dict().items() if not name.startswith('statistics.')}
        other.load_state_dict(plain)  # of a net without, or of an older version
        assert other.statistics is None
        assert torch.equal(other(x, stitch=2), family_net('resnet')(x, stitch=2))


@pytest.mark.slow  # seconds
def test_statistics_of_another_net_in_a_state_dict_are_refused(cnn):
    state = family_net('resnet').state_dict()
    odd = {'statistics.values.0.0.nothing': torch.zeros(2, 3), 'statistics.samples': torch.tensor(1)}
    with pytest.raises(SnnetError, match='statistics in the state dict do not fit'):
        family_net('resnet').load_state_dict({**state, **odd})


def test_a_state_dict_travels_inside_a_wrapper(cnn):
    outer, other = nn.Sequential(copy.deepcopy(cnn)), nn.Sequential(family_net('resnet'))
    other.load_state_dict(outer.state_dict())
    assert other[0].statistics.digest() == cnn.statistics.digest()


def test_costs_follow_changed_modules(tmp_path):
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=96).eval()
    before = net.records[0].params
    for i in (0, 1):
        net.anchor(i).model.reset_classifier(10)
    net.choose(flops=1e12)
    width = net.anchor(0).model.head.in_features
    assert net.records[0].params == before + 7 * (width + 1)
    assert net.parameter_names(0) >= {'anchors.0.model.head.weight'}
    assert net.extract(0)(images(96)).shape == (2, 10)


def test_a_new_classifier_is_saved_and_comes_back(tmp_path):
    made = timm.create_model('test_vit')
    made.reset_classifier(10)
    net = StitchableNet([snnet.as_anchor(made)], [snnet.Stitch((snnet.Leg('test_vit'),))]).eval()
    net.save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path)
    x = images(160)
    assert loaded.num_classes == 10
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


@pytest.mark.quick('new_block')
@pytest.mark.parametrize('change', [new_block, new_activation, prune_a_layer, weight_norm, adapter])
def test_a_net_that_could_not_be_built_again_is_refused_before_anything_is_written(tmp_path, change):
    net = family_net('resnet')
    change(net)
    with pytest.raises(SnnetError, match=r'small cannot be saved, because it could not be built again: ') as caught:
        net.save_pretrained(tmp_path / 'folder')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'folder').exists()


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda vit: setattr(vit.blocks[0].attn, 'scale', 1.0), r'blocks\.0\.attn has scale 1\.0, not'),
        (lambda vit: setattr(vit.norm, 'eps', 0.1), r'norm has .*eps=0\.1.*, not .*eps=1e-06'),
        (lambda vit: setattr(vit.blocks[1].mlp.act, 'approximate', 'tanh'), "act has approximate='tanh', not"),
        (lambda vit: setattr(vit.blocks[1], 'forward', torch.relu), r'the forward of blocks\.1 was replaced'),
    ],
)
def test_settings_that_no_tensor_shows_are_noticed_before_a_net_is_saved(tmp_path, change, told):
    net = family_net('vit')
    change(net.anchor(0).model)
    with pytest.raises(SnnetError, match=f'small cannot be saved, because it could not be built again: .*{told}'):
        net.save_pretrained(tmp_path / 'folder')
    assert not (tmp_path / 'folder').exists()


def test_what_only_changes_training_or_speed_does_not_keep_a_net_from_being_saved(tmp_path):
    net = family_net('vit')
    vit = net.anchor(0).model
    vit.set_grad_checkpointing()
    vit.blocks[0].attn.fused_attn = not vit.blocks[0].attn.fused_attn
    vit.blocks[0].attn.proj_drop.p = 0.3
    net.save_pretrained(tmp_path)


def test_what_cannot_be_saved_at_all_is_said(tmp_path, caplog):
    net = family_net('vit')
    net.anchor(1).model.blocks[0].register_forward_hook(lambda *_: None)
    net.save_pretrained(tmp_path)
    assert 'forward hooks are not saved (anchors.1.model.blocks.0 has one)' in caplog.text
    with pytest.raises(SnnetError, match=r'not saved: .* has no values \(it lies on the meta device\)'):
        net.to('meta').save_pretrained(tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


def test_weights_of_several_types_are_refused_and_half_ones_come_back_as_they_are(tmp_path):
    net = family_net('vit')
    net.anchor(0).half()
    with pytest.raises(SnnetError, match=r'has type torch.float16, not torch.float32 \(net.float\(\) converts it\)'):
        net.save_pretrained(tmp_path)
    net.half().save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))


@pytest.mark.slow  # a few seconds
def test_tied_weights_are_saved_once_and_come_back_tied(tmp_path):
    args = {'num_classes': 5, 'img_size': 64, 'embed_dims': [16, 16, 24, 24], 'serial_depths': [2, 2, 2, 2]}
    anchors = [
        snnet.as_anchor(timm.create_model(name, **args), input_size=(3, 64, 64))
        for name in ('coat_lite_tiny', 'coat_lite_mini')
    ]
    net = snnet.create_stitchable_net(anchors, pretrained=False).eval()
    net.save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path)
    x = images(64)
    with torch.no_grad():
        assert all(torch.equal(loaded(x, stitch=i), net(x, stitch=i)) for i in range(len(net.stitches)))
    size = sum(parameter.nbytes for parameter in net.parameters())
    assert (tmp_path / 'model.safetensors').stat().st_size < 1.1 * size + 100_000


@pytest.mark.slow  # a few seconds
def test_a_saved_net_is_loaded_for_other_classes_with_everything_else_equal(tmp_path):
    net = evaluated(family_net('resnet'))
    net.save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path, num_classes=3)
    assert (loaded.num_classes, loaded.stitches, loaded.training) == (3, net.stitches, False)
    state, before = loaded.state_dict(), net.state_dict()
    odd = {name for name in before if not torch.equal(state[name], before[name])}
    assert odd == {f'anchors.{i}.model.fc.{leaf}' for i in (0, 1) for leaf in ('weight', 'bias')}
    assert {record.top1 for record in loaded.records} == {None}
    assert loaded.fingerprint is None
    assert loaded.records[0].params < net.records[0].params
    loaded.save_pretrained(tmp_path / 'again')
    assert StitchableNet.from_pretrained(tmp_path / 'again').num_classes == 3
    with pytest.raises(SnnetError, match='a net has 0 .* to 1,000,000 classes, not num_classes=-1'):
        StitchableNet.from_pretrained(tmp_path, num_classes=-1)
