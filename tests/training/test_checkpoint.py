from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
from collections import namedtuple

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from torch import nn

from snnet import SnnetError
from snnet.training.checkpoint import Checkpoints
from snnet.training.run_state import RunState
from tests.helpers.mutations import is_refused, mutated

X = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
FILES = ('state.safetensors', 'state.json', 'SHA256SUMS')


def make(opt='adamw', channels_last=False, **options):
    """A state that one step has touched, so that moments exist."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 2))
    if channels_last:
        net.to(memory_format=torch.channels_last)
    state = RunState({'net': net}, create_optimizer_v2(net, opt=opt, lr=0.01, **options), torch.amp.GradScaler('cpu'))
    move(state, 1)
    return state


def move(state, steps):
    net, images = state.modules['net'], X.contiguous(memory_format=torch.channels_last)
    for _ in range(steps):
        state.optimizer.zero_grad()
        loss = net(images).square().mean()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()


def equal(one, other):
    one, other = one.tensors(), other.tensors()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def values(loss=None):
    return {'loss': loss, 'skips': 0}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def said(caplog):
    """The package's messages; a run may have taken its logger away from pytest."""
    logger = logging.getLogger('snnet')
    before, logger.propagate = logger.propagate, True
    yield caplog
    logger.propagate = before


@pytest.fixture
def two(tmp_path):
    """Checkpoints after 1 and 2 steps, and the states that they hold."""
    checkpoints, state = Checkpoints(tmp_path / 'checkpoints', keep=2), make()
    found = {}
    for step in (1, 2):
        assert checkpoints.save(step, state, values(1.0 / step))
        found[step] = copy.deepcopy(state.tensors())
        move(state, 1)
    return checkpoints, found


@pytest.mark.parametrize(
    ('opt', 'options'),
    [
        ('adamw', {}),
        ('adamw', {'channels_last': True}),
        ('adamw', {'channels_last': True, 'fused': True}),
        ('momentum', {'weight_decay': 0.1}),
        ('lamb', {'channels_last': True}),
        ('adan', {}),
        ('nadam', {}),
        ('lookahead_radam', {}),
        ('adafactorbv', {}),
    ],
)
def test_a_loaded_state_goes_on_bit_for_bit(tmp_path, opt, options):
    checkpoints, state, other = Checkpoints(tmp_path, 1), make(opt, **options), make(opt, **options)
    move(other, 3)
    checkpoints.save(1, state, values())
    assert checkpoints.newest()['step'] == 1
    checkpoints.load(1, other)
    assert equal(state, other)
    move(state, 7)
    move(other, 7)
    assert equal(state, other)
    assert json.dumps(state.values()) == json.dumps(other.values())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
    'flipped bit': flip,
    'empty': lambda path: os.truncate(path, 0),
    'missing': lambda path: path.unlink(),
    'no text': lambda path: path.write_bytes(b'\xff\xfe\x00'),
    'a pipe': lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(two, said, file, damage):
    checkpoints, states = two
    DAMAGE[damage](checkpoints.folder / 'step-00000002' / file)
    assert checkpoints.newest()['step'] == 1
    assert names(checkpoints.folder) == ['broken-step-00000002', 'step-00000001']
    assert [record.message.count('is broken') for record in said.records] == [1]
    state = make()
    checkpoints.load(1, state)
    assert all(torch.equal(value, states[1][name]) for name, value in state.tensors().items())


@pytest.mark.parametrize(
    'text', ['[]', '{}', '{"step": 2}', '{"format": 1, "step": 2}', '{"format": 2, "step": 1}', 'no JSON']
)
def test_a_foreign_file_with_a_right_sum_is_set_aside_too(two, text):
    checkpoints, _ = two
    folder = checkpoints.folder / 'step-00000002'
    (folder / 'state.json').write_text(text)
    sums = [f'{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n' for name in FILES[:2]]
    (folder / 'SHA256SUMS').write_text(''.join(sums))
    assert checkpoints.newest()['step'] == 1


@pytest.mark.parametrize('text', ['[]', '{}', '{"loss": "low"}', 'no JSON'])
def test_an_older_checkpoint_that_nobody_has_verified_does_not_disturb_the_choice_of_the_best(two, text):
    checkpoints, _ = two
    (checkpoints.folder / 'step-00000001' / 'state.json').write_text(text)
    assert checkpoints.save(3, make(), values(2.0))
    assert names(checkpoints.folder) == ['step-00000002', 'step-00000003']


def test_a_step_can_break_twice(two):
    checkpoints, _ = two
    for _ in range(2):
        flip(checkpoints.folder / 'step-00000002' / 'state.json')
        assert checkpoints.newest()['step'] == 1
        assert checkpoints.save(2, make(), values())
    assert names(checkpoints.folder) == ['broken-step-00000002', 'step-00000001', 'step-00000002']


def test_where_none_is_left_the_run_is_told_to_begin_again(two, said):
    checkpoints, _ = two
    for step in (1, 2):
        flip(checkpoints.folder / f'step-0000000{step}' / 'state.safetensors')
    assert checkpoints.newest() is None
    assert 'starts from the beginning' in said.messages[-1]
    assert Checkpoints(checkpoints.folder.parent / 'nowhere', 1).newest() is None
    assert len(said.messages) == 3


def test_foreign_things_beside_the_checkpoints_are_let_be(two):
    checkpoints, _ = two
    (checkpoints.folder / 'step-old').mkdir()
    (checkpoints.folder / 'notes.txt').touch()
    assert checkpoints.newest()['step'] == 2
    assert checkpoints.save(3, make(), values())
    assert {'step-old', 'notes.txt'} < set(names(checkpoints.folder))


def test_a_checkpoint_is_safetensors_and_json_with_sums_that_sha256sum_checks(two):
    checkpoints, states = two
    folder = checkpoints.folder / 'step-00000002'
    assert names(folder) == sorted(FILES)
    tensors = load_file(folder / 'state.safetensors')
    assert {'net.0.weight', 'net.1.running_mean', 'moment.0.exp_avg', 'moment.0.step'} < tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in states[2].items())
    subprocess.run(['sha256sum', '--check', '--strict', 'SHA256SUMS'], cwd=folder, check=True, capture_output=True)
    flip(folder / 'state.json')
    assert subprocess.run(['sha256sum', '--check', 'SHA256SUMS'], cwd=folder, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ('losses', 'left'),
    [
        ([None, 3.0, 1.0, 2.0, 2.0], [3, 4, 5]),
        ([None, 3.0, 2.0, 2.0, 1.0], [4, 5]),
        ([None, 1.0, 1.0, 2.0, 3.0], [3, 4, 5]),
        ([None] * 5, [4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, losses, left):
    checkpoints, state = Checkpoints(tmp_path, 2), make()
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(step, state, values(loss))
    assert names(tmp_path) == [f'step-0000000{step}' for step in left]


def test_what_killed_processes_left_is_cleared_away(two):
    checkpoints, _ = two
    for name in ('.step-00000003.77.tmp', '.step-00000001.old.tmp'):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / 'state.safetensors').touch()
    assert checkpoints.newest()['step'] == 2
    checkpoints.save(3, make(), values(0.1))
    assert names(checkpoints.folder) == ['step-00000002', 'step-00000003']


def test_a_step_that_is_there_is_not_written_again(two):
    checkpoints, _ = two
    before = (checkpoints.folder / 'step-00000002').stat()
    assert checkpoints.save(2, make(), values())
    after = (checkpoints.folder / 'step-00000002').stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def full_disk(monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(100, 95, 5))


def full_while_saving(monkeypatch):
    def save(tensors, path, metadata):
        path.write_bytes(b'half of the')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('safetensors.torch.save_file', save)


def full_in_safetensors(monkeypatch):
    def save(tensors, path, metadata):
        raise SafetensorError('I/O error: No space left on device (os error 28)')

    monkeypatch.setattr('safetensors.torch.save_file', save)


def full_while_moving(monkeypatch):
    def replace(old, new):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', replace)


@pytest.mark.parametrize('fault', [full_disk, full_while_saving, full_in_safetensors, full_while_moving])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_is_one_warning(two, said, monkeypatch, fault):
    checkpoints, _ = two
    with monkeypatch.context() as patch:
        fault(patch)
        assert not checkpoints.save(3, make(), values())
    assert names(checkpoints.folder) == ['step-00000001', 'step-00000002']
    assert len(said.messages) == 1
    assert 'step-00000003 needs' in said.text
    assert 'bytes' in said.text
    assert checkpoints.newest()['step'] == 2
    assert checkpoints.save(4, make(), values())


@pytest.mark.parametrize('part', ['weight', 'moment', 'statistic'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_not_finite_is_never_saved(two, part, value):
    checkpoints, _ = two
    state = make()
    net = state.modules['net']
    tensor = {
        'weight': net[3].bias.data,
        'moment': state.optimizer.state[net[0].weight]['exp_avg_sq'],
        'statistic': net[1].running_var,
    }[part]
    tensor.view(-1)[-1] = value
    with pytest.raises(SnnetError, match=r'is not finite after step 3, so no checkpoint was written.*--lr'):
        checkpoints.save(3, state, values())
    assert names(checkpoints.folder) == ['step-00000001', 'step-00000002']


def another_net(state):
    net = state.modules['net'] = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    return net.parameters()


def two_groups(state):
    parameters = list(state.modules['net'].parameters())
    return [{'params': parameters[:1]}, {'params': parameters[1:]}]


def fewer_parameters(state):
    return list(state.modules['net'].parameters())[:1]


@pytest.mark.parametrize('change', [another_net, two_groups, fewer_parameters])
def test_a_checkpoint_of_another_net_or_optimizer_is_refused_with_a_sentence(two, change):
    checkpoints, _ = two
    state = make()
    state.optimizer = torch.optim.AdamW(change(state))
    with pytest.raises(SnnetError, match=r'step-00000002 does not fit these anchors') as error:
        checkpoints.load(2, state)
    assert '\n' not in str(error.value)


def test_an_optimizer_whose_state_is_no_table_of_tensors_is_refused(tmp_path):
    state = make()
    state.optimizer.state[state.modules['net'][3].bias]['Q'] = [torch.eye(2)]  # as timm's Kron keeps it
    with pytest.raises(SnnetError, match=r'AdamW keeps what a checkpoint cannot hold .* choose another --opt'):
        Checkpoints(tmp_path, 1).save(1, state, values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # seconds
def test_mutated_values_with_the_right_sums_are_set_aside_or_refused_in_a_sentence(two):
    """What is loaded can take a step: no value of a wrong type reaches the optimizer."""
    checkpoints, _ = two
    path = checkpoints.folder / 'step-00000002'
    text, sums, rng = (path / FILES[1]).read_text(), (path / FILES[2]).read_text(), random.Random(4)
    before, state, seen = hashlib.sha256(text.encode()).hexdigest(), make(), set()
    for _ in range(250):
        data = mutated(json.loads(text), rng)
        path.mkdir(exist_ok=True)
        (path / FILES[1]).write_bytes(data)
        (path / FILES[2]).write_text(sums.replace(before, hashlib.sha256(data).hexdigest()))
        for aside in checkpoints.folder.glob('broken-*'):
            os.replace(aside / FILES[0], path / FILES[0])
            shutil.rmtree(aside)
        step = checkpoints.newest()['step']
        seen.add(step)
        if is_refused(lambda: checkpoints.load(step, state)):  # noqa: B023  # called at once
            seen.add('refused')
        else:
            move(state, 1)
    assert seen == {1, 2, 'refused'}
