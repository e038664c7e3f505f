from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from snnet import SnnetError, create_stitchable_net
from snnet.config.sections import options_of
from snnet.training import answer_store as store
from snnet.training.answer import Answer, Question
from snnet.training.answer_store import MANIFEST, Store
from snnet.training.distillation import DistillationLoss
from snnet.training.teacher import Teacher
from snnet.training.teacher_answers import Answers, fingerprint
from snnet.training.train_settings import TrainSettings
from snnet.utils.distributed import Ranks
from tests.helpers.runs import train_images, train_settings, write_images

CLASSES, STEPS = 30, 6
QUESTIONS = {'hard': Question('hard'), 'top 5': Question('soft', 5, 2.0), 'all': Question('soft', 0, 2.0)}
SAME = ((0.5,) * 3, (0.5,) * 3)

DECIDING = {
    'dataset', 'train_split', 'batch_size', 'scale', 'ratio', 'hflip', 'color_jitter', 'aa', 'train_interpolation',
    'reprob', 'remode', 'aug_repeats', 'mixup', 'cutmix', 'mixup_prob', 'mixup_switch_prob', 'distill',
    'channels_last',
}  # fmt: skip
"""Settings that decide images or answers by their value."""
SEEN = {
    'data_dir', 'class_map', 'anchors', 'img_size', 'num_classes', 'seed', 'data_seed', 'amp', 'amp_dtype', 'teacher',
    'distill_tau', 'distill_topk', 'from_', 'labels',
}  # fmt: skip
"""Settings that decide images or answers by way of something that the fingerprint holds in their place."""
FREE = {
    'workers', 'device', 'plugin', 'output', 'resume', 'pretrained', 'window', 'step', 'nearest', 'direction', 'init',
    'init_samples', 'freeze_anchors', 'stitch_per_rank', 'drop_path', 'distill_alpha', 'teacher_store',
    'teacher_epochs', 'opt', 'lr', 'stitch_lr', 'weight_decay', 'momentum', 'clip_grad', 'clip_mode', 'sched', 'epochs',
    'warmup_epochs', 'warmup_lr', 'min_lr', 'smoothing', 'log_interval', 'sampler', 'sampler_width', 'sampler_anchors',
    'stitches_per_step', 'stitch_rank', 'init_ridge', 'protect_anchors', 'compile', 'grad_accum_steps', 'unused_grads',
    'fused', 'grad_checkpointing', 'model_ema', 'model_ema_decay', 'checkpoint_steps', 'checkpoint_minutes',
    'checkpoint_keep', 'max_bad_images', 'recalibrate', 'max_skips', 'check_steps', 'timeout', 'grow_every',
    'grow_every_epochs', 'grow_until', 'grow_score', 'grow_cut', 'grow_budget', 'grow_kinds', 'grow_where',
    'grow_static', 'tune', 'lora_rank', 'fit_heads', 'head_samples', 'loss', 'class_weights',
    'freeze_bn', 'log_to', 'adapt_minutes', 'adapt_steps', 'adapt_samples', 'adapt_blends', 'adapt_blocks',
    'adapt_lr', 'stage_ends',
}  # fmt: skip
"""Settings that change neither the images of a step nor what a teacher says to them."""


def images(step, rank=0):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(100 * rank + step))


def teacher():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    with torch.no_grad():
        draw = torch.Generator().manual_seed(7)
        network[1].weight.copy_(torch.randn(CLASSES, 192, generator=draw))
    return Teacher(network, *SAME, *SAME)


def no_teacher():
    raise AssertionError('the teacher was built')


def same(one: Answer, other: Answer) -> bool:
    pairs = [(one.classes, other.classes), (one.shares, other.shares)]
    return all((a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def run(folder, question=QUESTIONS['top 5'], make=teacher, steps=STEPS, rank=0, flush=True):
    """The answers of a run with a store."""
    answers = Answers(make, question, Store(folder, {'of': 'test'}, rank), range(steps))
    given = [answers(step, images(step, rank)) for step in range(steps)]
    if flush:
        answers.flush()
    return given


def shards(folder):
    return sorted(folder.rglob('*.safetensors'))


@pytest.fixture
def small(monkeypatch):
    """Shards of at most four steps."""
    monkeypatch.setattr(store, 'SHARD_STEPS', 4)


@pytest.mark.parametrize('question', QUESTIONS.values(), ids=QUESTIONS)
def test_loss_and_gradient_from_the_store_are_those_with_a_live_teacher_bit_for_bit(tmp_path, small, question):
    live = Answers(teacher, question)
    run(tmp_path, question)
    replayed = Answers(no_teacher, question, Store(tmp_path, {'of': 'test'}), range(STEPS))
    loss = DistillationLoss(nn.CrossEntropyLoss(), 0.5, question.tau)
    targets = torch.arange(4)
    for step in range(STEPS):
        values = []
        for answers in (live, replayed):
            logits = images(50 + step).flatten(1)[:, :CLASSES].clone().requires_grad_()
            value = loss(logits, targets, answers(step, images(step)))
            values.append((value.detach(), *torch.autograd.grad(value, logits)))
        assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
        assert values[0][1].abs().sum() > 0


@pytest.mark.parametrize(('top', 'width'), [(255, 1), (65535, 2), (70_000, 4)])
def test_a_class_takes_as_few_bytes_as_its_number_allows(tmp_path, top, width):
    answer = Answer(torch.tensor([[top], [3], [0], [1]]), None)
    first = Store(tmp_path, {})
    for step in range(100):
        first.put(step, answer, images(0))
    first.flush()
    assert same(Store(tmp_path, {}).get(99, images(99)), answer)
    size = sum(path.stat().st_size for path in shards(tmp_path))
    assert 400 * width < size < 400 * width + 400


def test_nothing_is_written_by_a_run_that_replays_and_a_file_a_shard_by_one_that_fills(tmp_path, small):
    run(tmp_path)
    assert [path.name.split('.')[0] for path in shards(tmp_path)] == ['000000000-000000004', '000000004-000000006']
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    run(tmp_path, make=no_teacher)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_a_flush_at_every_checkpoint_leaves_no_more_files(tmp_path, small):
    answers = Answers(teacher, QUESTIONS['hard'], Store(tmp_path, {}), range(10))
    for step in range(10):
        answers(step, images(step))
        answers.flush()
        answers.flush()
    assert len(shards(tmp_path)) == 3
    assert Store(tmp_path, {}).held(range(2, 12)) == 8


def test_epochs_that_repeat_take_their_answers_from_memory_and_disk(tmp_path, small):
    asked = []

    class Counted(Teacher):
        def forward(self, x):
            asked.append(len(x))
            return super().forward(x)

    answers = Answers(lambda: Counted(teacher().model, *SAME, *SAME), QUESTIONS['top 5'], Store(tmp_path, {}), range(6))
    first, second = ([answers(step, images(step)) for step in range(6)] for _ in range(2))
    assert len(asked) == 6
    assert all(map(same, first, second))


def test_a_run_that_was_killed_keeps_what_was_flushed_and_the_next_one_fills_the_hole(tmp_path, small):
    given = run(tmp_path, steps=5, flush=False)  # the first four made a shard
    assert Store(tmp_path, {'of': 'test'}).held(range(STEPS)) == 4
    again = run(tmp_path, flush=False)
    assert all(map(same, given, again[:5]))
    run(tmp_path)
    assert all(map(same, again, run(tmp_path, make=no_teacher)))


@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_a_crash_while_a_shard_is_written_leaves_the_one_before(tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    answers = Answers(teacher, QUESTIONS['top 5'], Store(tmp_path, {'of': 'test'}), range(STEPS))
    given = [answers(step, images(step)) for step in range(3)]
    answers.flush()
    answers(3, images(3))
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, kill)
        patch.setattr(Path, 'unlink', lambda *_, **__: None)  # a killed process tidies nothing up
        with pytest.raises(Killed):
            answers.flush()
    assert list(tmp_path.rglob('.*.tmp'))
    opened = Store(tmp_path, {'of': 'test'})
    assert opened.held(range(STEPS)) == 3
    assert all(same(opened.get(step, images(step)), given[step]) for step in range(3))
    assert not list(tmp_path.rglob('.*.tmp'))


def test_a_crash_between_a_longer_shard_and_the_removal_of_the_shorter_is_tidied_up(tmp_path, monkeypatch):
    answers = Answers(teacher, QUESTIONS['hard'], Store(tmp_path, {'of': 'test'}), range(STEPS))
    for step in range(STEPS):
        answers(step, images(step))
        with monkeypatch.context() as patch:
            patch.setattr(Path, 'unlink', lambda *_, **__: None)
            answers.flush()
    assert len(shards(tmp_path)) == STEPS
    run(tmp_path, QUESTIONS['hard'], no_teacher)
    assert len(shards(tmp_path)) == 1


def test_shards_of_two_runs_that_filled_one_store_may_overlap(tmp_path):
    runs = [Answers(teacher, QUESTIONS['hard'], Store(tmp_path, {'of': 'test'}), range(STEPS)) for _ in range(2)]
    for answers, steps in zip(runs, (range(4), range(2, STEPS)), strict=True):
        for step in steps:
            answers(step, images(step))
        answers.flush()
    assert len(shards(tmp_path)) == 2
    assert [Store(tmp_path, {'of': 'test'}).held(range(stop)) for stop in (3, STEPS, 9)] == [3, STEPS, STEPS]
    run(tmp_path, QUESTIONS['hard'], no_teacher)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


DAMAGE = {
    'a flipped bit': flip,
    'truncation': lambda path: os.truncate(path, path.stat().st_size // 2),
    'an empty file': lambda path: os.truncate(path, 0),
    'a lost file': Path.unlink,
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_noticed_reported_once_asked_again_and_rewritten(tmp_path, small, caplog, damage):
    given = run(tmp_path, steps=10)
    opened = Store(tmp_path, {'of': 'test'})
    damage(shards(tmp_path)[1])
    answers = Answers(teacher, QUESTIONS['top 5'], opened, range(10))  # found while it is read
    with caplog.at_level(logging.WARNING):
        again = [answers(step, images(step)) for step in range(10)]
    answers.flush()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert 'asked again for its 4 steps' in caplog.text
    assert all(map(same, given, again))
    assert all(map(same, given, run(tmp_path, make=no_teacher, steps=10)))


def test_a_full_disk_costs_a_warning_and_the_answers_but_not_the_run(tmp_path, small, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, 'No space left on device')

    answers = Answers(teacher, QUESTIONS['hard'], Store(tmp_path, {}), range(10))
    monkeypatch.setattr(store, 'write_atomically', full)
    with caplog.at_level(logging.WARNING):
        for step in range(10):
            answers(step, images(step))
    assert caplog.text.count('No space left') == 2  # a shard each
    assert len(answers.store._buffer) <= 4
    assert not shards(tmp_path)


def test_another_fingerprint_is_refused_with_the_keys_that_differ(tmp_path):
    kept = Store(tmp_path, {'aa': '', 'scale': (0.5, 1), 'seed': 1}, 1)
    kept.put(0, Answer(torch.zeros(4, 1).long(), None), images(0))
    assert not list(tmp_path.iterdir())  # nothing before there is something to keep
    kept.flush()
    Store(tmp_path, {'aa': '', 'scale': (0.5, 1.0), 'seed': 1}, 0)
    Store(tmp_path, {'aa': '', 'scale': (0.5, 1.0), 'seed': None}, 0)  # unknown
    with pytest.raises(SnnetError, match=r"different settings: aa was '', is 'rand'; name another") as error:
        Store(tmp_path, {'aa': 'rand', 'scale': (0.5, 1), 'seed': 1}, 0)
    assert 'scale' not in str(error.value)
    with pytest.raises(SnnetError, match='seed was 1, is 2, mixup was None, is 0.8'):
        Store(tmp_path, {'aa': '', 'scale': (0.5, 1), 'seed': 2, 'mixup': 0.8}, 1)
    with pytest.raises(SnnetError, match='seed was 1, is None'):
        Store(tmp_path, {'aa': '', 'scale': (0.5, 1)}, 1)


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        ('', 'is damaged'),
        ('[]', 'is damaged'),
        ('{"format": 1}', 'is damaged'),
        ('{"format": 9, "fingerprint": {"of": "test"}}', 'has format 9, this snnet reads 1'),
        (None, 'has lost its manifest.json'),
    ],
)
def test_a_store_without_a_readable_manifest_is_refused(tmp_path, text, hint):
    run(tmp_path)
    manifest = tmp_path / 'rank0' / MANIFEST
    assert json.loads(manifest.read_text())['fingerprint'] == {'of': 'test'}
    manifest.unlink() if text is None else manifest.write_text(text)
    with pytest.raises(SnnetError, match=hint) as error:
        Store(tmp_path, {'of': 'test'})
    assert '\n' not in str(error.value)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SnnetError, match='is not a folder'):
        Store(tmp_path / 'file', {})


def test_answers_to_other_images_are_refused(tmp_path):
    run(tmp_path)
    opened = Store(tmp_path, {'of': 'test'})
    assert opened.get(0, images(0) + 1e-4) is not None  # normalized elsewhere
    for others in (images(1), images(0).flip(0), images(0)[:3]):
        with pytest.raises(SnnetError, match='do not belong to the images of step 0'):
            opened.get(0, others)


def test_ranks_keep_their_answers_apart(tmp_path):
    given = [run(tmp_path, rank=rank) for rank in range(2)]
    assert not any(map(same, *given))
    for rank in range(2):
        assert all(map(same, given[rank], run(tmp_path, make=no_teacher, rank=rank)))


def test_a_teacher_that_will_be_needed_is_made_at_once_and_its_errors_come_then(tmp_path):
    def fail():
        raise SnnetError('no such teacher')

    run(tmp_path, steps=STEPS - 1)
    for kept, steps in ((None, STEPS), (Store(tmp_path, {'of': 'test'}), STEPS)):
        with pytest.raises(SnnetError, match='no such teacher'):
            Answers(fail, QUESTIONS['hard'], kept, range(steps))
    Answers(fail, QUESTIONS['hard'], Store(tmp_path, {'of': 'test'}), range(STEPS - 1))


def test_a_teacher_made_in_the_middle_of_a_step_moves_no_generator(tmp_path):
    run(tmp_path)
    answers = Answers(teacher, QUESTIONS['hard'], Store(tmp_path, {'of': 'test'}), range(STEPS))
    shards(tmp_path)[0].unlink()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    answers(0, images(0))
    assert torch.equal(torch.rand(3), expected)


def test_no_more_than_a_shard_is_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(store, 'SHARD_BYTES', 4 * (5 * 8 + 6 * 2) * 3)  # three steps of four images
    answers = Answers(teacher, QUESTIONS['top 5'], Store(tmp_path, {}), range(20))
    for step in range(20):
        answers(step, images(step))
        assert len(answers.store._buffer) < 3
    assert len(shards(tmp_path)) == 6


def test_every_setting_either_decides_images_and_answers_or_does_not():
    names, lists = set(options_of(TrainSettings)), [DECIDING, SEEN, FREE]
    assert sum(map(len, lists)) == len(set.union(*lists)), 'a setting in two lists'
    assert set.union(*lists) == names, 'list a new setting as deciding (and put it into the fingerprint), seen, or free'


@pytest.fixture(scope='module')
def net():
    return create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32)


BASE = {'teacher': 'largest', 'distill': 'soft'}
OTHER = {
    **dict.fromkeys(DECIDING, 0.123),
    'data_seed': 1, 'seed': 1, 'amp': True, 'teacher': 'regnety_160', 'distill_tau': 2.0, 'distill_topk': 3,
    'distill': 'hard',
}  # fmt: skip


def of(net, world=1, **changes):
    settings = train_settings('out', **{**BASE, **changes})
    images = train_images(train_settings('out'), net, Ranks(0, world, torch.device('cpu')))
    images.data, images.augmentation, images.seed = settings.data, settings.augmentation, settings.seeds.of_data
    return fingerprint(settings.distillation, settings.mixing, settings.compute, net, images.identity())


@pytest.mark.parametrize('name', sorted(OTHER))
def test_what_decides_images_or_answers_is_in_the_fingerprint(net, name):
    assert of(net, **{name: OTHER[name]}) != of(net)


def test_the_fingerprint_goes_into_json_and_holds_what_settings_come_to(net):
    print_ = of(net)
    assert json.loads(json.dumps(print_)).keys() == print_.keys()
    assert of(net, world=2) != print_
    assert of(net, data_seed=0, seed=9) == print_
    assert of(net, amp_dtype='float16', distill_topk=4, epochs=9, lr=1.0, anchors='others') == print_
    assert of(net, amp=True, amp_dtype='float16') != of(net, amp=True)
    assert of(net, distill='hard', distill_topk=3, distill_tau=2.0) == of(net, distill='hard')


def test_files_are_known_by_their_names_wherever_they_lie(net, tmp_path):
    def digest(folder):
        settings = train_settings('out', dataset='', data_dir=str(folder), **BASE)
        return train_images(settings, net, Ranks(0, 1, torch.device('cpu'))).identity()['files']

    for folder in ('a', 'b'):
        write_images(tmp_path / folder / 'train', 4, 2)
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    assert digest(tmp_path / 'a').startswith('8 images, names ')
    (tmp_path / 'b/train/class1/0.png').rename(tmp_path / 'b/train/class1/2.png')
    assert digest(tmp_path / 'a') != digest(tmp_path / 'b')
