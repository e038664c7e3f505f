from __future__ import annotations

import copy
import json

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

from snnet.errors import SnnetError
from snnet.reparam import Grower, expand, restore, structure_of
from tests.helpers.families import images
from tests.helpers.runs import on_two_ranks
from tests.reparam.test_grower import sgd, small, train

OPTIONS = {'every': 2, 'kinds': ('1x1', '1x1_kxk', 'identity'), 'cut': 'published', 'seed': 3}


class Run:
    """A model in training, with all that hangs on it."""

    def __init__(self, adam=False, **options):
        self.model = small()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2) if adam else sgd(self.model)
        self.ema = ModelEmaV3(self.model, decay=0.9)
        self.grower = Grower(self.model, **OPTIONS | options, optimizer=self.optimizer, ema=self.ema)

    def go(self, steps, first=0):
        return train(self.model, self.optimizer, self.grower, steps, first, ema=self.ema)

    def state(self):
        """As it comes back from a file."""
        tensors = copy.deepcopy((self.model.state_dict(), self.ema.module.state_dict(), self.optimizer.state_dict()))
        return json.dumps(self.grower.state_dict()), *tensors

    def load(self, state):
        structure, model, average, optimizer = state
        self.grower.load_state_dict(json.loads(structure))
        self.model.load_state_dict(model)
        self.ema.module.load_state_dict(average)
        self.optimizer.load_state_dict(optimizer)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True)) and list(a) == list(b)


@pytest.mark.parametrize(
    ('stop', 'score', 'adam'), [(1, 'vote', False), (4, 'snip', True), (5, 'snip', False), (9, 'random', True)]
)
def test_a_killed_run_goes_on_bit_for_bit(stop, score, adam):
    whole, killed, resumed = (Run(adam, score=score) for _ in range(3))
    history = whole.go(10)
    killed.go(stop)
    resumed.load(killed.state())
    resumed.go(10 - stop, stop)
    assert resumed.grower.history == history
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.ema.module.state_dict(), whole.ema.module.state_dict())
    assert resumed.grower.state_dict() == whole.grower.state_dict()


def test_it_goes_on_with_an_optimizer_made_after_the_structure_was_restored():
    whole, killed = Run(), Run()
    whole.go(7)
    killed.go(5)
    structure, model, average, optimizer = killed.state()
    resumed = Run.__new__(Run)
    resumed.model = restore(small(), json.loads(structure)['structure'])
    resumed.optimizer = sgd(resumed.model)
    resumed.ema = ModelEmaV3(resumed.model, decay=0.9)
    resumed.grower = Grower(resumed.model, **OPTIONS, optimizer=resumed.optimizer, ema=resumed.ema)
    resumed.load((structure, model, average, optimizer))
    resumed.go(2, 5)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_a_folded_run_comes_back_folded():
    run, again = Run(cut=1e9), Run()
    run.go(4)
    run.grower.fold()
    again.load(run.state())
    assert same(again.model.state_dict(), run.model.state_dict())
    assert 'third.bias' in run.model.state_dict()
    with pytest.raises(SnnetError, match='the network is folded'):
        again.grower.step()


def test_what_folding_left_behind_is_part_of_the_structure():
    run = Run(every=1, where=['third'])
    run.go(1)
    run.grower.cut = 1e9
    run.go(1, 1)
    assert run.grower.structure == {'third': ['bias']}
    run.grower.cut = None
    run.go(1, 2)
    assert run.grower.structure == {'third': ['bias', '1x1', '1x1_kxk', 'identity']}
    again = Run(every=1, where=['third'])
    again.load(run.state())
    assert same(again.model.state_dict(), run.model.state_dict())


@pytest.mark.parametrize(
    ('structure', 'message'),
    [
        ({'fourth': ['1x1']}, "there is no module 'fourth'"),
        ({'norm': ['1x1']}, 'norm can have no branches'),
        ({'second': ['1x1', 'identity']}, "second can have no branch 'identity': 8 channels become 12"),
        ({'first': ['5x5']}, "first can have no branch '5x5'"),
    ],
)
def test_a_structure_that_does_not_match_is_refused_and_changes_nothing(structure, message):
    model = small()
    with pytest.raises(SnnetError, match=f'the structure does not match the network: {message}'):
        restore(model, {'first': ['1x1'], **structure})
    assert structure_of(model) == {}


def test_other_branches_and_other_states_are_refused():
    with pytest.raises(SnnetError, match='does not match the network: first has other branches'):
        restore(expand(small(), ('1x1',), ['first']), {'first': ['1x1', 'identity']})
    run = Run()
    with pytest.raises(SnnetError, match='not the state of a Grower in format 1, but None'):
        run.grower.load_state_dict({})
    state = json.loads(run.state()[0])
    with pytest.raises(SnnetError, match='an optimizer with 1 parameter groups, this one has 2'):
        run.grower.load_state_dict({**state, 'groups': state['groups'][:1]})
    with pytest.raises(SnnetError, match="no module 'gone'"):
        run.grower.load_state_dict({**state, 'grids': {'gone': [1, 1]}})


def test_gradient_scaling_goes_on_across_a_change():
    model = small()
    optimizer, scaler = sgd(model), torch.amp.GradScaler('cpu', init_scale=256.0)
    grower = Grower(model, 1, optimizer=optimizer, scaler=scaler)
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = F.cross_entropy(model(images(16, 8, seed=step)).float(), torch.arange(8) % 5)
        scaler.scale(loss).backward()
        grower.observe()
        scaler.step(optimizer)
        scaler.update()
        assert grower.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert scaler.get_scale() == 256.0


def test_a_distributed_wrapper_is_refused(monkeypatch):
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, '__init__', lambda self: nn.Module.__init__(self))
    with pytest.raises(SnnetError, match=r'grow the module inside \(model.module\)'):
        Grower(nn.parallel.DistributedDataParallel(), 1)


def _on_one_rank(ranks):
    model = small()
    optimizer = sgd(model)
    grower = Grower(model, 1, optimizer=optimizer, ranks=ranks)
    for step in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images(16, 8, seed=10 * step + ranks.rank)), torch.arange(8) % 5).backward()
        for tensor in [*(p.grad for p in model.parameters()), *(b for b in model.buffers() if b.is_floating_point())]:
            ranks.all_reduce(tensor)
            tensor /= ranks.world
        grower.observe()
        optimizer.step()
        grower.step()
    return [tuple(change) for change in grower.history], float(sum(p.double().sum() for p in model.parameters()))


@pytest.mark.slow
def test_ranks_that_saw_other_images_grow_alike():
    first, second = on_two_ranks(_on_one_rank)
    assert first == second
    assert len(first[0]) == 2
