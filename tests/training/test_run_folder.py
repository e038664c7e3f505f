from __future__ import annotations

import errno
import os
import re
import signal

import pytest
import yaml

from snnet.config.sections import from_flat, with_changes
from snnet.errors import LostRanks, SnnetError
from snnet.training.run_folder import RunFolder
from snnet.training.train_settings import TrainSettings
from tests.helpers.runs import train_settings


def opened(path, world=1, **changes):
    """A folder that a run has begun in; it is claimed until this object goes."""
    folder = RunFolder(train_settings(path, **changes), world)
    folder.refuse_what_is_not_ours()
    folder.open()
    return folder


def look(path, world=1, **changes):
    RunFolder(train_settings(path, **changes), world).refuse_what_is_not_ours()


def test_a_new_an_empty_and_an_own_folder_are_welcome(tmp_path):
    look(tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    look(tmp_path)
    opened(tmp_path)
    look(tmp_path)


def test_a_run_that_was_killed_at_its_very_beginning_can_be_started_again(tmp_path):
    opened(tmp_path / 'run')
    (tmp_path / 'run' / 'train.log').touch()
    look(tmp_path / 'run')
    for leftover in ('.lock', '.config.yaml.4711.tmp'):
        (tmp_path / 'killed').mkdir(exist_ok=True)
        (tmp_path / 'killed' / leftover).touch()
    look(tmp_path / 'killed')


@pytest.mark.parametrize('name', ['thesis.txt', '.git', 'checkpoints'])
def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(SnnetError, match='holds something else: name another --output'):
        look(tmp_path)
    RunFolder(train_settings(tmp_path), 1).note_error(0, ValueError('no'))
    assert os.listdir(tmp_path) == [name]


def test_an_error_before_the_run_begins_leaves_an_empty_folder_empty(tmp_path):
    RunFolder(train_settings(tmp_path), 1).note_error(0, SnnetError('no teacher of that name'))
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'run').touch()
    with pytest.raises(SnnetError, match='name another --output'):
        look(tmp_path / 'run')


@pytest.mark.parametrize(
    ('changes', 'hint'),
    [
        ({'lr': 0.5}, r'other settings: lr was 0\.0001, is 0\.5$'),
        ({'lr': 0.5, 'anchors': 'a,b'}, r"anchors was 'test_vit,test_vit2', is 'a,b'; lr was"),
        ({'batch_size': 8}, r'batch_size was 4, is 8$'),
        ({'grad_accum_steps': 2}, r'grad_accum_steps was 1, is 2$'),
        ({'resume': False}, r'holds a run: continue it with --resume'),
    ],
)
def test_a_run_of_other_settings_is_refused_naming_what_differs(tmp_path, changes, hint):
    opened(tmp_path)
    with pytest.raises(SnnetError, match=hint):
        look(tmp_path, **changes)


def test_settings_that_decide_no_result_may_change(tmp_path):
    opened(tmp_path)
    look(tmp_path, workers=2, checkpoint_steps=3, checkpoint_keep=7, log_interval=9, timeout=60, check_steps=2)


@pytest.mark.parametrize(
    ('world', 'changes'),
    [(1, {'batch_size': 8}), (4, {'batch_size': 2}), (1, {'grad_accum_steps': 2}), (1, {'batch_size': 2,
     'grad_accum_steps': 4})],
)  # fmt: skip
def test_other_processes_with_as_many_images_a_step_are_welcome(tmp_path, world, changes):
    opened(tmp_path, world=2)
    look(tmp_path, world, **changes)


@pytest.mark.parametrize(
    ('world', 'changes', 'hint'),
    [
        (1, {}, r'2 processes took 8 images per step, 1 take 4 \(resume with 2 processes, or set --batch-size so that'),
        (3, {}, r'2 processes took 8 images per step, 3 take 12'),
        (1, {'batch_size': 16}, r'batch_size was 4, is 16$'),
        (1, {'batch_size': 8, 'lr': 1.0}, r'other settings: lr was 0.0001, is 1.0$'),
    ],
)
def test_another_number_of_images_a_step_is_refused_with_the_numbers(tmp_path, world, changes, hint):
    opened(tmp_path, world=2)
    with pytest.raises(SnnetError, match=hint):
        look(tmp_path, world, **changes)


def test_the_way_a_step_is_dealt_may_change_again_and_again(tmp_path):
    opened(tmp_path, world=2)
    opened(tmp_path, world=1, batch_size=8)
    look(tmp_path, 1, batch_size=8)
    look(tmp_path, 4, batch_size=2)


@pytest.mark.parametrize(
    'text', [b'', b'\xff\xfe', b'- a\n- b\n', b'lr: [', b'lr: 1\n', b'world: 1\n', b'world: two\nbatch_size: 4\n', b'7']
)
def test_a_damaged_config_is_one_sentence(tmp_path, text):
    opened(tmp_path)
    (tmp_path / 'config.yaml').write_bytes(text)
    with pytest.raises(SnnetError, match=r'config\.yaml is damaged, so it is unknown which run this is'):
        look(tmp_path)


def in_a_child(function):
    """Runs a function in another process, which then stays; returns its id and what the function returned."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            kept = function()  # what it opened stays open
            os.write(writing, b'done')
        except BaseException as error:
            os.write(writing, str(error).encode())
        signal.pause()
        os._exit(len(str(kept)))
    os.close(writing)
    with os.fdopen(reading, 'rb', buffering=0) as pipe:
        return pid, pipe.read(1000).decode()


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_one_process_at_a_time_trains_in_a_folder_and_death_frees_it(tmp_path):
    pid, told = in_a_child(lambda: opened(tmp_path))
    assert told == 'done'
    with pytest.raises(SnnetError, match='another process trains in .* wait for it, or name another --output'):
        opened(tmp_path)
    end(pid)
    mine = opened(tmp_path)
    pid, told = in_a_child(lambda: opened(tmp_path))
    assert 'another process trains in' in told
    end(pid)
    del mine


def test_a_loader_process_does_not_keep_the_folder_when_the_run_is_killed(tmp_path):
    def run_with_a_loader():
        kept = opened(tmp_path)
        loader = os.fork()
        if loader == 0:
            signal.alarm(60)
            signal.pause()
        (tmp_path / 'loader').write_text(str(loader))
        return kept

    pid, _ = in_a_child(run_with_a_loader)
    end(pid)
    try:
        assert opened(tmp_path)
    finally:
        os.kill(int((tmp_path / 'loader').read_text()), signal.SIGKILL)


@pytest.mark.parametrize('call', ['mkdir', 'open'])
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(f'pathlib.Path.{call}' if call == 'mkdir' else 'builtins.open', refuse)
    with pytest.raises(SnnetError, match=r"the output folder '.*' cannot be written: Read-only file system$"):
        RunFolder(train_settings(tmp_path / 'run'), 1).open()


@pytest.fixture
def restart(tmp_path, monkeypatch):
    """Starts an attempt from a step, as torchrun does for the count-th time, and ends it with errors."""
    folder = opened(tmp_path)

    def attempt(count, step, *errors):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(count))
        try:
            folder.note_attempt(step)
        except SnnetError as error:
            folder.note_error(0, error)
            raise
        for rank, error in errors:
            folder.note_error(rank, error)

    return attempt


CAUSE = (1, RuntimeError('out of\nmemory'))
LOST = (0, LostRanks('rank 0 lost the other 1 ranks'))


@pytest.mark.parametrize('errors', [[CAUSE], [LOST, CAUSE], [CAUSE, LOST]])
def test_a_restart_storm_ends_after_three_attempts_and_tells_what_caused_it(restart, errors):
    restart(0, 4, (0, ValueError('an older one')))
    for count in (1, 2):
        restart(count, 4, *errors)
    for count in (3, 4):
        with pytest.raises(SnnetError) as error:
            restart(count, 4)
        assert re.fullmatch(
            r'3 attempts from step 4 ended before the next checkpoint, so it is not tried again; '
            r'last cause: rank 1: RuntimeError: out of memory',
            str(error.value),
        )


def test_the_loss_of_other_ranks_is_told_where_nobody_knows_more(restart):
    for count in range(3):
        restart(count, 0, *([LOST] if count == 2 else []))
    with pytest.raises(SnnetError, match='last cause: rank 0: LostRanks: rank 0 lost'):
        restart(3, 0)


def test_where_every_rank_was_killed_the_cause_is_unknown(restart):
    restart(0, 0, CAUSE)
    restart(1, 0)
    restart(2, 0)
    with pytest.raises(SnnetError, match=r'last cause: unknown \(killed\?\)$'):
        restart(3, 0)


def test_progress_and_a_fresh_start_begin_the_count_again(restart):
    for count, step in enumerate([0, 0, 5, 5, 10, 10, 15]):
        restart(count, step, CAUSE)
    restart(7, 15)
    restart(8, 15)
    for count in (0, 1, 2):
        restart(count, 15)
    with pytest.raises(SnnetError):
        restart(3, 15)


def test_an_attempt_is_counted_even_if_the_file_of_attempts_is_torn(restart, tmp_path):
    for count in (0, 1, 2):
        restart(count, 0)
        with open(tmp_path / 'attempts.jsonl', 'a') as file:
            file.write('{"rank": 0, "err\n[1]\n{}\n')
    with pytest.raises(SnnetError):
        restart(3, 0)


def test_a_full_disk_does_not_hide_why_a_run_ended(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    folder = opened(tmp_path)
    monkeypatch.setattr('builtins.open', refuse)
    folder.note_error(0, ValueError('the cause'))


OLDER = """
{data_dir: '', dataset: generated/64, class_map: '', batch_size: 4, workers: 0, device: cpu, plugin: [], amp: false,
amp_dtype: bfloat16, compile: false, anchors: 'test_vit,test_vit2', output: somewhere, resume: true, seed: 0,
data_seed: null, pretrained: false, num_classes: 4, img_size: 32, window: 2, step: 1, nearest: true,
direction: fast_to_slow, init: joint, init_ridge: 0.0, stitch_rank: 0, init_samples: 8, freeze_anchors: false,
sampler: flops, sampler_width: 0.05, sampler_anchors: 0.3, stitches_per_step: 1, stitch_per_rank: false,
protect_anchors: 0.2, drop_path: 0.1, teacher: largest, distill: soft, distill_alpha: 0.5, distill_tau: 1.0,
distill_topk: 16, teacher_store: '', teacher_epochs: null, opt: adamw, lr: 0.0001, stitch_lr: 0.001,
weight_decay: 0.05, momentum: 0.9, clip_grad: null, clip_mode: norm, sched: cosine, epochs: 6, warmup_epochs: 1,
warmup_lr: 1.0e-07, min_lr: 1.0e-06, grow_every: 10, grow_score: snip, grow_cut: published, grow_budget: null,
grow_kinds: [], grow_where: [], grow_static: false, max_bad_images: 0.001, train_split: train, scale: [0.5, 1.0],
ratio: [0.75, 1.3333333333333333], hflip: 0.5, color_jitter: 0.4, aa: rand-m9-mstd0.5-inc1,
train_interpolation: bicubic, reprob: 0.25, remode: pixel, aug_repeats: 3, mixup: 0.8, cutmix: 1.0, mixup_prob: 1.0,
mixup_switch_prob: 0.5, smoothing: 0.1, recalibrate: 1000, grad_accum_steps: 2, unused_grads: none,
channels_last: false, fused: false, grad_checkpointing: false, model_ema: true, model_ema_decay: 0.9998,
checkpoint_steps: null, checkpoint_minutes: 5.0, checkpoint_keep: 2, max_skips: 10, check_steps: 500,
timeout: 1800.0, log_interval: 1, world: 1}
"""
"""The config.yaml of a run before settings had sections."""


def test_the_settings_that_an_older_version_wrote_are_understood(tmp_path):
    values = yaml.safe_load(OLDER)
    assert values.pop('world') == 1
    values['output'] = str(tmp_path)
    settings = from_flat(TrainSettings, values)
    (tmp_path / 'config.yaml').write_text(OLDER)
    RunFolder(settings, 1).refuse_what_is_not_ours()
    RunFolder(with_changes(settings, batch_size=2), 2).refuse_what_is_not_ours()
    with pytest.raises(SnnetError, match='other settings: scale was .0.5, 1.0., is .0.6, 1.0.; lr was 0.0001, is 0.1$'):
        RunFolder(with_changes(settings, lr=0.1, scale=(0.6, 1.0)), 1).refuse_what_is_not_ours()
