"""Folding keeps the output or is refused: whatever else reads a convolution's output, weight or bias."""

from __future__ import annotations

import copy
import io
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune, weight_norm

from snnet.errors import SnnetError
from snnet.reparam import Grower, expand, fold, structure_of
from snnet.reparam.growth_rules import branches_to_cut
from tests.helpers.families import images, shake
from tests.reparam.test_grower import small, train
from tests.reparam.test_stitch_branches import resnets


def maps(count=3, seed=0):
    return torch.randn(count, 4, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network(nn.Module):
    """Two convolutions and a BatchNorm, put together by a function."""

    def __init__(self, run, bias=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def gated_without_gradient(net, x):
    y = net.conv(x)
    with torch.no_grad():
        gate = y.mean((1, 2, 3), keepdim=True).sigmoid()
    return net.norm(y) * gate


def gated_by_a_copy(net, x):
    y = net.conv(x)
    return net.norm(y) * y.detach().amax((2, 3), keepdim=True).sigmoid()


def returned_too(net, x):
    y = net.conv(x)
    return net.norm(y), y


def gated_in_the_middle(net, x):
    y = net.conv(x)
    return net.norm(y) + 0.1 * y.data[:, :, 3:4, 2:3]


def distance(found, wanted):
    found, wanted = ((y,) if isinstance(y, torch.Tensor) else y for y in (found, wanted))
    return max(float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize('run', [gated_without_gradient, gated_by_a_copy, returned_too, gated_in_the_middle])
def test_a_bias_is_kept_if_anything_else_reads_the_output(run):
    net, x = Network(run).double().eval(), maps()
    expand(net, where=['conv'], images=x)
    shake(net, 1).eval()
    before = net(x)
    fold(net, x)
    assert distance(net(x), before) <= 1e-13
    assert net.conv.bias is not None


def test_a_norm_absorbs_the_bias_if_nothing_else_reads_the_output():
    net, x = Network(lambda net, x: net.norm(net.conv(x))).double().eval(), maps()
    expand(net, where=['conv'], images=x)
    before = shake(net, 1).eval()(x)
    assert distance(fold(net, x)(x), before) <= 1e-13
    assert net.conv.bias is None


def tied(net, x):
    return F.conv_transpose2d(net.conv(x).relu(), net.conv.weight, padding=1)


def tied_without_gradient(net, x):
    return F.conv_transpose2d(net.conv(x).relu(), net.conv.weight.detach().flip(-1), padding=1)


def biased(net, x):
    return net.conv(x) * net.conv.bias[:, None, None]


@pytest.mark.parametrize('run', [tied, tied_without_gradient, biased])
def test_a_weight_or_bias_that_is_read_elsewhere_is_refused_before_anything_changes(run):
    net, x = Network(run, bias=True).double().eval(), maps()
    with pytest.raises(SnnetError, match='conv can have no branches: something else reads its weight'):
        expand(net, where=['conv'], images=x)
    with pytest.raises(SnnetError, match='nothing to grow .*: something else reads its weight'):
        expand(net, where=lambda name, _: name == 'conv', images=x)
    assert structure_of(net) == {}
    expand(net, where=['conv'])  # without images nobody can know
    before, grown = shake(net, 1).eval()(x), structure_of(net)
    with pytest.raises(SnnetError, match='conv cannot be folded: something else reads its weight'):
        fold(net, x)
    assert structure_of(net) == grown
    assert torch.equal(net(x), before)


def test_a_grower_leaves_alone_what_it_could_not_fold(caplog):
    net = Network(lambda net, x: F.conv_transpose2d(net.other(net.conv(x)).relu(), net.conv.weight, padding=1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for where, raises in ((None, False), (['conv'], True)):
        grower = Grower(net, 1, where=where, optimizer=optimizer, budget=1e9)
        optimizer.zero_grad()
        net.train()(maps().float()).sum().backward()
        grower.observe()
        if raises:
            with pytest.raises(SnnetError, match='conv can have no branches: something else reads its weight'):
                grower.step()
        else:
            assert [change.name for change in grower.step()] == ['other']
            grower.fold()
    assert 'conv gets no branches: something else reads its weight' in caplog.text


def test_an_output_that_would_change_undoes_the_fold():
    net, x = Network(lambda net, x: net.conv(x) * float(net.conv.weight.numpy(force=True).sum())).double(), maps()
    expand(net.eval(), where=['conv'])
    before = shake(net, 1).eval()(x)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(SnnetError, match='something else reads'):
        fold(net, x)
    assert torch.equal(net(x), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def shared_bias():
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.bias = first.bias
    return nn.Sequential(first, second)


def shared_memory():
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.weight = nn.Parameter(first.weight.data)
    return nn.Sequential(first, second)


def pruned(name):
    conv = nn.Conv2d(4, 4, 3)
    prune.l1_unstructured(conv, name, 0.5)
    return conv


def normalized(name):
    return weight_norm(nn.Conv2d(4, 4, 3), name, dim=0)


def patched(name):
    conv = nn.Conv2d(4, 4, 3)
    setattr(conv, name, types.MethodType(lambda self, x, *args: 2 * F.conv2d(x, self.weight), conv))
    return conv


def with_a_buffer():
    conv = nn.Conv2d(4, 4, 3)
    conv.register_buffer('mask', torch.ones(4))
    return conv


@pytest.mark.filterwarnings('ignore:.*weight_norm')
@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (shared_bias, 'another module has the same bias'),
        (shared_memory, 'another module has the same weight'),
        (lambda: pruned('bias'), 'its bias is computed from other tensors'),
        (lambda: pruned('weight'), 'its weight is computed from other tensors'),
        (lambda: normalized('bias'), 'its bias is computed from other tensors'),
        (lambda: normalized('weight'), 'its weight is computed from other tensors'),
        (lambda: patched('forward'), 'its forward was replaced'),
        (lambda: patched('_conv_forward'), 'its _conv_forward was replaced'),
        (with_a_buffer, 'it has other tensors or modules than its class'),
    ],
)
def test_what_could_not_fold_is_refused(make, reason):
    with pytest.raises(SnnetError, match=f'nothing to grow .*{reason}'):
        expand(make())


def test_the_published_rule_takes_the_sample_standard_deviation():
    assert branches_to_cut({'a': 0.05, 'b': 0.08}, 'published') == [
        'a'
    ]  # 0.0212 > 0.02; with n in place of n - 1, 0.015
    assert branches_to_cut({'a': 0.05, 'b': 0.078}, 'published') == []
    assert branches_to_cut({'a': 0.05}, 'published') == []


def test_new_gammas_and_betas_never_decay():
    model = small()
    optimizer = torch.optim.SGD(
        [
            {'params': [model.second.weight], 'lr': 0.01, 'weight_decay': 0.1},
            {'params': [p for p in model.parameters() if p is not model.second.weight]},
        ],
        lr=0.05,
        weight_decay=0.1,
        momentum=0.9,
    )
    grower = Grower(model, 1, where=['first', 'second'], optimizer=optimizer, budget=1e9)
    train(model, optimizer, grower, 1)
    group_of = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for name, rate in (('first', 0.05), ('second', 0.01)):
        block = model.get_submodule(name)
        new = [p for n, p in block.named_parameters() if n.startswith(('norm.', 'branches.'))]
        assert len(new) > 6
        assert {group_of[id(p)]['lr'] for p in new} == {rate}
        assert {group_of[id(p)]['weight_decay'] for p in new if p.ndim == 1} == {0.0}
        assert {group_of[id(p)]['weight_decay'] for p in new if p.ndim > 1} == {0.1}


def test_a_scheduler_that_knows_its_groups_is_not_given_more(caplog):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, weight_decay=0.1)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    Grower(model, 1, optimizer=optimizer)
    assert len(optimizer.param_groups) == 1
    assert 'the scheduler was made before the Grower' in caplog.text


def test_nothing_changes_after_the_last_step_that_may_change():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    grower = Grower(model, 2, until=4, cut=None, optimizer=optimizer)
    train(model, optimizer, grower, 10)
    assert [change.interval for change in grower.history] == [1, 2]


@pytest.mark.slow  # seconds
def test_a_growing_network_is_pickled_and_copied_without_its_grower():
    model = resnets().float().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    grower = Grower(model, 1, optimizer=optimizer)
    for grown in (False, True):
        optimizer.zero_grad()
        model.train()(images(32, 4), stitch=0).sum().backward()
        grower.observe()
        if grown:
            assert grower.step()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for again in (
            torch.load(file, weights_only=False),
            pickle.loads(pickle.dumps(model)),
            copy.deepcopy(model),
        ):
            assert structure_of(again) == structure_of(model)
            x = images(32, 2, seed=3)
            assert torch.equal(again.eval()(x, stitch=0), model.eval()(x, stitch=0))
    size = len(pickle.dumps(model))
    model.train()(images(32, 64), stitch=0)
    assert len(pickle.dumps(model)) < 1.1 * size  # the last input is not part of it
