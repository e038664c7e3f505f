"""Logs of TensorBoard and Weights & Biases, with stand-ins for the two packages."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from snnet import SnnetError
from snnet.errors import MissingExtra
from snnet.training.log_to import check_logs, open_logs, write_logs
from snnet.training.trainer import train
from snnet.utils.json_lines import JsonLines
from tests.helpers.runs import train_settings


class Recorder:
    """Notes what is called on it."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **options: (self.calls.append((name, args, options)), self)[1]


@pytest.fixture
def wandb(monkeypatch):
    module = ModuleType('wandb')
    module.recorder = Recorder()
    module.init = module.recorder.init
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module.recorder


@pytest.fixture
def tensorboard(monkeypatch):
    recorder = Recorder()
    module = ModuleType('torch.utils.tensorboard')
    module.SummaryWriter = lambda *args, **options: recorder.SummaryWriter(*args, **options)
    monkeypatch.setitem(sys.modules, 'tensorboard', ModuleType('tensorboard'))
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', module)
    return recorder


def test_both_logs_get_the_numbers_of_a_row_under_its_step(tmp_path, wandb, tensorboard):
    logs = open_logs(['tensorboard', 'wandb', 'wandb'], tmp_path, {'lr': 0.1}, begin=0)
    write_logs(logs, {'step': 7, 'loss': 0.5, 'stitch': 3, 'skipped': True, 'changes': ['x']})
    for log in logs:
        log.close()
    scalars = [args for name, args, _ in tensorboard.calls if name == 'add_scalar']
    assert scalars == [('train/loss', 0.5, 7), ('train/stitch', 3.0, 7)]
    assert ('log', ({'train/loss': 0.5, 'train/stitch': 3.0},), {'step': 7}) in wandb.calls
    name, _, options = wandb.calls[0]
    assert (name, options['config'], options['resume']) == ('init', {'lr': 0.1}, 'allow')
    assert [call[0] for call in wandb.calls][-1] == 'finish'
    assert [call[0] for call in tensorboard.calls][-1] == 'close'


def test_a_run_that_goes_on_keeps_its_id_and_drops_later_steps(tmp_path, wandb, tensorboard):
    for begin in (0, 5):
        open_logs(['tensorboard', 'wandb'], tmp_path, {}, begin)
    ids = {options['id'] for name, _, options in wandb.calls if name == 'init'}
    assert len(ids) == 1
    purged = [options['purge_step'] for name, _, options in tensorboard.calls if name == 'SummaryWriter']
    assert purged == [None, 5]


@pytest.mark.slow  # a second
def test_a_run_logs_what_it_writes_to_its_own_log(tmp_path, wandb):
    settings = train_settings(tmp_path / 'run', log_to=['wandb'], epochs=1, recalibrate=0)
    train(settings)
    rows = JsonLines(tmp_path / 'run' / 'log.jsonl').read()
    logged = [(options['step'], args[0]['train/loss']) for name, args, options in wandb.calls if name == 'log']
    assert logged == [(row['step'], row['loss']) for row in rows]
    assert len(logged) == 3


def test_unknown_and_missing_logs_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(SnnetError, match="log_to is tensorboard or wandb, not 'tensorbord'; did you mean tensorboard"):
        check_logs(['tensorbord'])
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(MissingExtra, match=r"--log-to wandb needs wandb: pip install -e '\.\[wandb\]'"):
        train(train_settings(tmp_path / 'run', log_to=['wandb']))
    assert not (tmp_path / 'run').exists()


def test_a_package_that_is_there_but_does_not_import_is_told_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / 'wandb.py').write_text('import a_package_that_is_missing')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    with pytest.raises(MissingExtra, match=r"pip install wandb \(now: No module named 'a_package_that_is_missing'\)"):
        check_logs(['wandb'])
