from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import signal
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import distributed as dist

from snnet import SnnetError, StitchableNet
from snnet.config.sections import flattened, options_of, with_changes
from snnet.errors import LostRanks
from snnet.training import trainer as engine
from snnet.training.build_net import build_net
from snnet.training.train_settings import TrainSettings
from snnet.training.train_step import TrainStep
from snnet.training.trainer import train
from tests.helpers.runs import in_two_processes, train_settings, trainer

ROOT = __file__.rpartition('/tests/')[0]


NET = ('anchors', 'num_classes', 'img_size', 'drop_path')


@cache
def built(*values):
    return build_net(train_settings(Path('unused'), **dict(zip(NET, values, strict=True))).net)


@pytest.fixture(autouse=True)
def built_once(monkeypatch):
    """Spares the time to build the same net again, most of that of a short run; `test_engine` has runs build it."""

    def copied(settings, data):
        return copy.deepcopy(built(*(getattr(settings, name) for name in NET)))

    monkeypatch.setattr(engine, 'build_net', copied)


class Killed(BaseException):
    """Ends a run as nothing else in it does."""


def stop_at(monkeypatch, number, how):
    """Ends a run in the step with this number, or behind it as a signal does."""
    call = TrainStep.__call__

    def stopping(self, step, batches, asks):
        if step == number and how == 'killed':
            raise Killed
        return call(self, step, batches, [asks[0] or step == number, *asks[1:]])

    monkeypatch.setattr(TrainStep, '__call__', stopping)


def stopped(monkeypatch, settings, number, how='killed'):
    with monkeypatch.context() as patch, suppress(Killed):
        stop_at(patch, number, how)
        assert train(settings) is None


def newest(folder):
    """Every bit of the last checkpoint but the loss, which is a mean since the checkpoint before."""
    path = max((folder / 'checkpoints').glob('step-*'))
    values = json.loads((path / 'state.json').read_text())
    values.pop('loss')
    return (path / 'state.safetensors').read_bytes(), values


def ends(folder):
    """All that a run leaves: net, weights with moments, and log."""
    net = {name: value.numpy().tobytes() for name, value in load_file(folder / 'net' / 'model.safetensors').items()}
    return net, newest(folder), (folder / 'log.jsonl').read_bytes()


BUSY = {
    'plain': {'stops': [(1, 'killed'), (2, 'asked'), (5, 'killed')]},
    'much in a step': {
        'grad_accum_steps': 2, 'stitches_per_step': 2, 'sampler': 'stratified', 'dataset': 'generated/10',
        'batch_size': 2, 'mixup': 0.8, 'drop_path': 0.3, 'model_ema': True, 'model_ema_decay': 0.6, 'opt': 'momentum',
        'unused_grads': 'zero', 'stops': [(0, 'asked'), (3, 'killed')],
    },
    'batch norms': {
        'anchors': 'cifar_resnet20,cifar_resnet32', 'plugin': [f'{ROOT}/examples/cifar10_resnet.py'], 'num_classes': 10,
        'img_size': None, 'channels_last': True, 'fused': True, 'stops': [(4, 'asked')],
    },
    'half precision': {
        'amp': True, 'amp_dtype': 'float16', 'opt': 'nadam', 'clip_grad': 0.1, 'grad_checkpointing': True,
        'drop_path': 0.3, 'batch_size': 2, 'dataset': 'generated/8', 'epochs': 1, 'stops': [(2, 'asked')],
    },
}  # fmt: skip


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('name', BUSY)
def test_a_run_that_is_stopped_anywhere_ends_bit_for_bit_as_one_that_is_not(tmp_path, monkeypatch, name):
    changes = dict(BUSY[name])
    stops = changes.pop('stops')
    train(train_settings(tmp_path / 'whole', **changes))
    settings = train_settings(tmp_path / 'stopped', checkpoint_steps=2, **changes)
    for number, how in stops:
        stopped(monkeypatch, settings, number, how)
    before = newest(tmp_path / 'stopped')
    train(settings)
    assert before != newest(tmp_path / 'stopped')
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


@pytest.mark.slow  # a few seconds
def test_a_run_whose_settings_are_flat_as_in_older_versions_continues_bit_for_bit(tmp_path, monkeypatch):
    changes = {'mixup': 0.8, 'model_ema': True}
    train(train_settings(tmp_path / 'whole', **changes))
    settings = train_settings(tmp_path / 'stopped', checkpoint_steps=2, **changes)
    stopped(monkeypatch, settings, 3)
    config = tmp_path / 'stopped' / 'config.yaml'
    nested = yaml.safe_load(config.read_text())
    flat = flattened(TrainSettings, nested)
    assert set(flat) == {*options_of(TrainSettings), 'world'}
    assert flat != nested
    config.write_text(yaml.safe_dump(flat))
    with pytest.raises(SnnetError, match=r'other settings: mixup was 0.8, is 0.5$'):
        train(with_changes(settings, mixup=0.5))
    train(settings)
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


@pytest.mark.slow  # a few seconds
def test_the_number_of_loader_processes_may_change_at_every_stop(tmp_path, monkeypatch):
    changes = {'aa': 'rand-m9-mstd0.5-inc1', 'reprob': 0.5, 'cutmix': 1.0, 'epochs': 1, 'dataset': 'generated/16'}
    train(train_settings(tmp_path / 'whole', **changes))
    stopped(monkeypatch, train_settings(tmp_path / 'stopped', workers=2, **changes), 1, 'asked')
    train(train_settings(tmp_path / 'stopped', workers=1, **changes))
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


def train_on(rank, store, folder, number, how):
    """A rank of a run, that ends itself in a step."""
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store), 'TORCHELASTIC_USE_AGENT_STORE': 'True'}
    os.environ |= {'WORLD_SIZE': '2', 'RANK': str(rank), 'TORCHELASTIC_RUN_ID': 'x'}
    call = TrainStep.__call__

    def stopping(self, step, batches, asks):
        if step == number and rank == 1:
            os.kill(os.getpid(), how)
        return call(self, step, batches, asks)

    TrainStep.__call__ = stopping
    settings = train_settings(
        folder, dataset='generated/24', stitch_per_rank=True, drop_path=0.3, mixup=0.8, checkpoint_steps=2, timeout=60
    )
    try:
        return str(train(settings))
    except LostRanks as error:
        return error.args[0]


@pytest.mark.slow
def test_a_rank_that_is_told_to_end_or_killed_takes_no_bit_away(tmp_path):
    def on_two(folder, number=None, how=None):
        store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
        return in_two_processes(train_on, store.port, tmp_path / folder, number, how)

    assert on_two('whole') == [str(tmp_path / 'whole' / 'net')] * 2
    assert on_two('stopped', 0, signal.SIGTERM) == ['None', 'None']
    assert newest(tmp_path / 'stopped')[1]['step'] == 2
    told, silent = on_two('stopped', 4, signal.SIGKILL)
    assert told.startswith('rank 0 lost the other 1 ranks')
    assert silent is None
    assert newest(tmp_path / 'stopped')[1]['step'] == 4
    on_two('stopped')
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


@pytest.mark.slow  # a few seconds
def test_a_signal_loses_no_step_and_a_crash_at_most_an_interval(tmp_path, monkeypatch):
    taken = []
    call = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep, '__call__', lambda self, step, *rest: (taken.append(step), call(self, step, *rest))[1]
    )
    settings = train_settings(tmp_path, checkpoint_steps=2, checkpoint_minutes=None)
    for number, how in ((0, 'asked'), (2, 'asked'), (5, 'killed')):
        stopped(monkeypatch, settings, number, how)
    assert train(settings) == tmp_path / 'net'
    assert taken == [0, 1, 2, 3, 4, 4, 5]


@pytest.mark.slow  # seconds
def test_the_clock_asks_for_checkpoints_too(tmp_path, monkeypatch):
    stopped(monkeypatch, train_settings(tmp_path / 'busy', checkpoint_minutes=0), 3)
    assert newest(tmp_path / 'busy')[1]['step'] == 3
    stopped(monkeypatch, train_settings(tmp_path / 'lazy'), 3)
    assert newest(tmp_path / 'lazy')[1]['step'] == 0


def test_a_run_that_is_killed_while_it_initializes_starts_again(tmp_path, monkeypatch):
    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr('snnet.training.trainer.initialize_layers', kill)
        with pytest.raises(Killed):
            train(train_settings(tmp_path, epochs=0))
    assert not (tmp_path / 'checkpoints').exists()
    assert train(train_settings(tmp_path, epochs=0))


@pytest.fixture
def said(caplog, monkeypatch):
    """What a run says; it takes its logger away from pytest."""
    monkeypatch.setattr('snnet.training.trainer.set_up_logging', lambda *args, **kwargs: None)
    caplog.set_level(logging.DEBUG, 'snnet')
    return caplog


@pytest.mark.slow  # a few seconds
def test_where_every_checkpoint_is_broken_the_run_begins_again_with_a_warning(tmp_path, monkeypatch, said):
    changes = {'epochs': 1}
    train(train_settings(tmp_path / 'whole', **changes))
    stopped(monkeypatch, train_settings(tmp_path / 'stopped', **changes), 1, 'asked')
    for path in (tmp_path / 'stopped').glob('checkpoints/*/state.safetensors'):
        path.write_bytes(b'')
    train(train_settings(tmp_path / 'stopped', **changes))
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')
    assert 'is whole: the run starts from the beginning' in said.text


@pytest.mark.slow  # a few seconds
@pytest.mark.parametrize('how', ['in the last step', 'behind it'])
def test_a_run_that_is_stopped_before_its_net_is_saved_does_the_rest_later(tmp_path, monkeypatch, how):
    changes = {'epochs': 1}
    train(train_settings(tmp_path / 'whole', **changes))
    settings = train_settings(tmp_path / 'stopped', **changes)
    with monkeypatch.context() as patch:
        if how == 'behind it':
            patch.setattr(engine, 'save_net', lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            stop_at(patch, newest(tmp_path / 'whole')[1]['step'] - 1, 'asked')
        assert train(settings) is None
    assert not (tmp_path / 'stopped' / 'net').exists()
    assert train(settings) == tmp_path / 'stopped' / 'net'
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


@pytest.mark.slow  # a few seconds
def test_a_finished_run_says_so_and_leaves_what_is_known_of_its_stitches(tmp_path, said):
    settings = train_settings(tmp_path, epochs=0)
    train(settings)
    config = tmp_path / 'net' / 'config.json'
    known = config.read_text().replace('"top1": null', '"top1": 50.0', 1) + ' '
    config.write_text(known)
    said.clear()
    assert train(settings) == tmp_path / 'net'
    assert 'is trained already' in said.text
    assert config.read_text() == known
    weights = tmp_path / 'net' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    train(settings)
    assert StitchableNet.from_pretrained(tmp_path / 'net')
    shutil.rmtree(tmp_path / 'net')
    train(settings)
    assert StitchableNet.from_pretrained(tmp_path / 'net')


@pytest.mark.slow  # seconds
def test_a_full_disk_costs_one_warning_a_checkpoint_and_nothing_else(tmp_path, monkeypatch, said):
    train(train_settings(tmp_path / 'whole', epochs=1))
    said.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            'snnet.training.checkpoint._fill', lambda *args: (_ for _ in ()).throw(OSError(28, 'No space left'))
        )
        train(train_settings(tmp_path / 'full', epochs=1, checkpoint_steps=2))
    warnings = [record.message for record in said.records if record.levelno >= logging.WARNING]
    assert [re.search(r'no checkpoint after step (\d)', text)[1] for text in warnings] == ['0', '2', '3']
    assert ends(tmp_path / 'whole')[0] == {
        name: value.numpy().tobytes()
        for name, value in load_file(tmp_path / 'full' / 'net' / 'model.safetensors').items()
    }


@pytest.mark.slow  # seconds
def test_weights_that_are_not_finite_end_the_run_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    settings = train_settings(tmp_path, checkpoint_steps=2)
    call = TrainStep.__call__

    def poison(self, step, *rest):
        found = call(self, step, *rest)
        if step == 3:
            with torch.no_grad():
                self.net.stitch_layers[0].weight[0, 0] = float('nan')
        return found

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, '__call__', poison)
        with pytest.raises(SnnetError, match='not finite after step 4'):
            train(settings)
    assert newest(tmp_path)[1]['step'] == 2
    assert train(settings)


def test_ranks_that_differ_end_the_run_before_anything_is_saved(tmp_path):
    with trainer(train_settings(tmp_path, checkpoint_steps=2, check_steps=100)) as run:
        run.step.exchange.differing_ranks = lambda: {1: 'stitch_layers.0.bias'}
        with pytest.raises(SnnetError, match=r'after step 1 .*\(rank 1 from stitch_layers\.0\.bias on\)'):
            run.run()
    assert newest(tmp_path)[1]['step'] == 0


def test_how_many_steps_were_left_out_in_a_row_is_known_after_a_stop(tmp_path, monkeypatch):
    settings = train_settings(tmp_path, max_skips=3)
    call = TrainStep.__call__

    def blind(self, step, batches, asks):
        return call(self, step, [batch._replace(images=batch.images * float('nan')) for batch in batches], asks)

    monkeypatch.setattr(TrainStep, '__call__', blind)
    stopped(monkeypatch, settings, 1, 'asked')
    with pytest.raises(SnnetError, match=r'not finite in 3 steps in a row.* at step 2:'):
        train(settings)


@pytest.mark.slow  # seconds
def test_the_average_of_the_weights_is_what_is_saved(tmp_path):
    with trainer(train_settings(tmp_path, epochs=1, model_ema=True, model_ema_decay=0.5, lr=0.01)) as run:
        run.run()
        average = run.average.module.state_dict()
        net = run.net.state_dict()
    saved = load_file(tmp_path / 'net' / 'model.safetensors')
    assert all(torch.equal(saved[name], value) for name, value in average.items())
    assert not all(torch.equal(saved[name], value) for name, value in net.items())


def test_the_watchdog_hears_of_every_part_of_the_initialization_and_of_every_step(tmp_path):
    alive = []
    with trainer(train_settings(tmp_path, epochs=1)) as run:
        run.watchdog.alive = lambda: alive.append(run.step.skips)
        run.run()
    assert len(alive) >= 2 + 3 + 2  # anchors, steps and checkpoints


@pytest.mark.slow  # seconds
def test_a_folder_that_was_removed_in_the_run_is_a_run_again_after_the_next_checkpoint(tmp_path, monkeypatch):
    settings = train_settings(tmp_path / 'run', checkpoint_steps=1)
    call = TrainStep.__call__

    def remove(self, step, *rest):
        if step == 2:
            shutil.rmtree(tmp_path / 'run')
        return call(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, '__call__', remove)
        stopped(patch, settings, 4)
    assert newest(tmp_path / 'run')[1]['step'] >= 3
    assert train(settings)
