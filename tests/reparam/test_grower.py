from __future__ import annotations

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

from snnet.errors import InvalidBudget, SnnetError
from snnet.reparam import DBB, Grower, expand, structure_of
from snnet.reparam.flops_meter import FlopsMeter
from snnet.reparam.growth_rules import branches_to_cut
from tests.helpers.families import images


class Small(nn.Module):
    """Three growable convolutions, with and without a BatchNorm behind them, and one on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.behind = nn.BatchNorm2d(12)
        self.third = nn.Conv2d(12, 12, 5, padding=2, groups=4, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.first(x))
        x = F.relu(self.behind(self.second(x)))
        return self.head(F.relu(self.third(x)).mean((2, 3)))


def small(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().to(dtype)


def sgd(model):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def train(model, optimizer, grower, steps, first=0, count=16, ema=None):
    """Trains and grows; returns the changes."""
    changes = []
    for step in range(first, first + steps):
        model.train()
        x = images(16, count, seed=step).to(model.head.weight.dtype)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(count) % 5).backward()
        grower.observe()
        optimizer.step()
        if ema is not None:
            ema.update(model)
        changes += grower.step()
    return changes


def distance(a, b):
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize('cut', ['published', 0.5, None])
def test_the_function_stays_at_every_change(cut):
    model = small(torch.float64)
    optimizer = sgd(model)
    grower = Grower(model, 2, cut=cut, optimizer=optimizer)
    x, kinds = images(16, 4, seed=9).double(), set()
    for step in range(12):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x + step), torch.arange(4) % 5).backward()
        grower.observe()
        optimizer.step()
        before = copy.deepcopy(model).eval()(x)
        changes = grower.step()
        assert distance(copy.deepcopy(model).eval()(x), before) <= 1e-14
        kinds |= {'cut' for change in changes if change.cut} | {'added' for change in changes if change.added}
    assert kinds == ({'added'} if cut is None else {'added', 'cut'})


def errors_in_train_mode(init, norm):
    """How far growing moves the output on other images in train mode, for growing batches."""
    found = []
    for count in (8, 32, 128):
        model = small(torch.float64)
        if not norm:
            model.behind = nn.Identity()
        with torch.no_grad():
            model.second.weight.mul_(3)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        grower = Grower(model, 1, init=init, where=['second'], optimizer=optimizer)
        model.train()
        before = [copy.deepcopy(model)(images(16, count, seed=s).double()) for s in (7, 8)]
        train(model, optimizer, grower, 1, first=7, count=count)
        after = [model.train()(images(16, count, seed=s).double()) for s in (7, 8)]
        found.append([distance(now, then) for now, then in zip(after, before, strict=True)])
    return found


@pytest.mark.parametrize('norm', [True, False])
def test_in_train_mode_only_the_noise_of_a_batch_changes(norm):
    errors = errors_in_train_mode('calibrated', norm)
    assert all(same <= 1e-13 for same, _ in errors)
    others = [other for _, other in errors]
    assert others[0] < 0.03
    assert others[-1] < 0.4 * others[0]


def test_the_published_beginning_changes_the_scale_unless_a_norm_follows():
    assert min(error for pair in errors_in_train_mode('published', False) for error in pair) > 0.1
    assert max(error for pair in errors_in_train_mode('published', True) for error in pair) < 0.05


def test_the_published_beginning_errs_by_eps_in_eval_mode():
    model = small(torch.float64).eval()
    x = images(16).double()
    before = model(x)
    expand(model, init='published')
    assert 1e-7 < distance(model(x), before) < 1e-4


def test_a_network_has_one_grower_at_a_time():
    model = small()
    first = Grower(model, every=1)
    for network in (model, nn.Sequential(model)):
        with pytest.raises(SnnetError, match='a Grower grows this network already'):
            Grower(network, every=1)
    Grower(copy.deepcopy(model), every=1)
    first.fold()
    second = Grower(model, every=1)
    del second  # nobody can use it any more
    Grower(model, every=1)


def test_the_best_scored_convolution_grows_first_and_then_the_next():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    grower = Grower(model, 3, kinds=DBB, cut=None, optimizer=optimizer)
    train(model, optimizer, grower, 2)
    best = max((values := grower.scores.values()['snip']), key=values.__getitem__)
    changes = train(model, optimizer, grower, 7, first=2)
    assert changes[0].name == best
    assert sorted(change.name for change in changes) == ['first', 'second', 'third']
    assert [change.interval for change in changes] == [1, 2, 3]
    assert train(model, optimizer, grower, 3, first=9) == []


@pytest.mark.parametrize(('room', 'grown'), [(0.9, 0), (1.35, 1), (10, 3)])
def test_as_many_grow_as_the_budget_allows(room, grown):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    meter = FlopsMeter(model)
    model(images(16))
    plain = meter.total()
    assert plain == 256 * 8 * 27 + 256 * 8 * 72 + 64 * 12 * 72 + 64 * 12 * 75 + 60
    grower = Grower(model, 1, budget=room * plain, kinds=('1x1', '1x1_kxk'), cut=None, optimizer=optimizer)
    assert len(train(model, optimizer, grower, 1)) == grown
    assert grower.flops <= max(room, 1) * plain


@pytest.mark.parametrize(
    ('importances', 'cut', 'expected'),
    [
        ({'a': 0.01, 'b': 0.011}, 'published', []),
        ({'a': 0.01, 'b': 0.2}, 'published', ['a']),
        ({'a': 0.15, 'b': 0.4}, 'published', []),
        ({'a': 0.05, 'b': 0.07, 'c': 0.13}, 'published', ['a', 'b']),
        ({'a': 0.01, 'b': 0.2}, 0.3, ['a', 'b']),
        ({'a': 0.0, 'b': 0.2}, None, []),
    ],
)
def test_the_rules_of_cutting(importances, cut, expected):
    assert branches_to_cut(importances, cut) == expected


def test_a_block_without_branches_is_a_plain_convolution_again():
    model = small()
    optimizer = sgd(model)
    plain = dict(model.named_parameters())
    attributes = {name: copy.deepcopy(module.__dict__) for name, module in model.named_modules()}
    grower = Grower(model, 1, optimizer=optimizer, cut=None)
    train(model, optimizer, grower, 3)
    assert structure_of(model).keys() == {'first', 'second', 'third'}
    grower.cut = 1e9
    train(model, optimizer, grower, 1, first=3)
    assert structure_of(model) == {}
    after = dict(model.named_parameters())
    assert after.keys() == plain.keys() | {'third.bias'}
    assert all(after[name] is plain[name] for name in plain)
    for name in ('first', 'second'):
        module = model.get_submodule(name)
        assert type(module) is nn.Conv2d
        assert module.__dict__.keys() == attributes[name].keys()
    assert {id(p) for p in optimizer.state} <= {id(p) for p in after.values()}


def test_the_optimizer_holds_every_parameter_once_and_no_dead_one():
    model = small()
    optimizer = sgd(model)
    grower = Grower(model, 1, optimizer=optimizer, kinds=DBB)
    kept = optimizer.state
    for step in range(6):
        train(model, optimizer, grower, 1, first=step)
        grower.cut = 1e9 if step == 3 else None
        held = [id(p) for group in optimizer.param_groups for p in group['params']]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        assert {id(p) for p in kept} <= set(held)
        decayed, others = ({p.ndim for p in group['params']} for group in optimizer.param_groups)
        assert decayed == {2, 4}
        assert others == {1}
    grower.fold()
    held = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in kept} <= set(held)


def test_a_moving_average_follows_and_keeps_its_own_output():
    model = small(torch.float64)
    optimizer = sgd(model)
    ema = ModelEmaV3(model, decay=0.9)
    grower = Grower(model, 2, optimizer=optimizer, ema=ema, cut=None)
    x = images(16).double()
    for step in range(0, 8, 2):
        train(model, optimizer, grower, 1, first=step, ema=ema)
        model.train()
        grower.observe()
        before = ema.module(x)
        grower.cut = 1e9 if step == 4 else None
        assert grower.step()
        assert distance(ema.module(x), before) <= 1e-14
        assert structure_of(ema.module) == structure_of(model)
        assert list(ema.module.state_dict()) == list(model.state_dict())
        ema.update(model)
    before = ema.module(x)
    grower.fold()
    assert distance(ema.module(x), before) <= 1e-14
    assert list(ema.module.state_dict()) == list(model.state_dict())


def test_importances_begin_at_a_hundredth_of_the_main_branch():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    train(model, optimizer, Grower(model, 1, optimizer=optimizer), 1)
    (name,) = structure_of(model)
    importances = model.get_submodule(name).importances()
    assert importances.keys() == set(structure_of(model)[name])
    assert all(value == pytest.approx(0.01, rel=0.02) for value in importances.values())


def test_bad_input_is_one_sentence():
    with pytest.raises(SnnetError, match='every must be at least one step, not 0'):
        Grower(small(), 0)
    with pytest.raises(SnnetError, match='nothing to grow in this Linear'):
        Grower(nn.Linear(3, 3), 1)
    with pytest.raises(SnnetError, match='nothing to grow in this Small.*first: its weight is frozen'):
        Grower(small().requires_grad_(False), 1)
    with pytest.raises(InvalidBudget, match='not -1'):
        Grower(small(), 1, budget=-1)
    with pytest.raises(SnnetError, match="not 'always'"):
        Grower(small(), 1, cut='always')
    with pytest.raises(SnnetError, match="no module 'frist'.*did you mean first"):
        Grower(small(), 1, where=['frist'])
    model = small()
    grower = Grower(model, 1)
    model(images(16))
    with pytest.raises(SnnetError, match=r'call grower.observe\(\) after backward'):
        grower.step()
    grower.fold()
    for act in (grower.step, grower.observe, grower.fold):
        with pytest.raises(SnnetError, match='the network is folded'):
            act()
