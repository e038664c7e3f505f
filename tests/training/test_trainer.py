from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snnet import SnnetError, StitchableNet, create_stitchable_net
from snnet.errors import reason_of
from snnet.training.optimizer import parameter_groups
from snnet.training.train_step import TrainBatch
from snnet.training.trainer import train
from tests.helpers.runs import train_settings, trainer


def weights(folder):
    return load_file(folder / 'net' / 'model.safetensors')


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


@pytest.mark.slow  # a few seconds
def test_a_seed_fixes_weights_and_log_bit_for_bit_and_another_seed_changes_them(tmp_path):
    busy = {'mixup': 0.8, 'cutmix': 1.0, 'drop_path': 0.2, 'aa': 'rand-m9-mstd0.5-inc1', 'teacher': 'largest'}
    runs = {name: tmp_path / name for name in ('one', 'two', 'other')}
    for name, folder in runs.items():
        train(train_settings(folder, seed=int(name == 'other'), **busy))
    assert equal(weights(runs['one']), weights(runs['two']))
    assert lines(runs['one']) == lines(runs['two'])
    assert not equal(weights(runs['one']), weights(runs['other']))


def test_a_step_moves_exactly_the_parameters_that_the_stitch_uses(tmp_path):
    with trainer(train_settings(tmp_path / 'run', drop_path=None)) as run:
        run.net.train()
        batch = next(run.images.epoch(0))
        for number in range(4):
            before = {name: p.detach().clone() for name, p in run.net.named_parameters()}
            row, _ = run.step(number, [TrainBatch(number, *batch)], [])
            moved = {name for name, p in run.net.named_parameters() if not torch.equal(p, before[name])}
            gradients = {name for name, p in run.net.named_parameters() if p.grad is not None}
            assert gradients == run.net.parameter_names(row['stitch'])
            assert moved <= gradients
            assert moved


@pytest.mark.slow  # seconds
def test_frozen_anchors_stay_as_they_are_and_only_stitches_are_drawn(tmp_path):
    settings = train_settings(
        tmp_path / 'run', anchors='test_convnext,test_convnext2', freeze_anchors=True, img_size=None, epochs=1
    )
    torch.manual_seed(0)
    with trainer(settings) as run:
        before = {name: value.clone() for name, value in run.net.anchors.state_dict().items()}
        layers = {name: value.clone() for name, value in run.net.stitch_layers.state_dict().items()}
        run.run()
    assert equal(before, run.net.anchors.state_dict())
    assert not equal(layers, run.net.stitch_layers.state_dict())
    assert all(run.net.stitches[row['stitch']].layers for row in lines(tmp_path / 'run'))


def test_stitch_layers_get_their_own_learning_rate_and_vectors_do_not_decay():
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False)
    groups = parameter_groups(net, train_settings(Path('unused'), lr=1e-4, stitch_lr=1e-3, weight_decay=0.05).optimizer)
    names = {id(p): name for name, p in net.named_parameters()}
    rate = {names[id(p)]: group['lr'] for group in groups for p in group['params']}
    decay = {names[id(p)]: group['weight_decay'] for group in groups for p in group['params']}
    assert rate.keys() == {name for name, _ in net.named_parameters()}
    assert {rate[n] for n in rate if n.startswith('stitch_layers')} == {1e-3}
    assert {rate[n] for n in rate if n.startswith('anchors')} == {1e-4}
    assert decay['anchors.0.model.pos_embed'] == 0
    assert decay['anchors.0.model.blocks.0.norm1.weight'] == 0
    assert decay['anchors.0.model.blocks.0.mlp.fc1.weight'] == 0.05
    assert decay['stitch_layers.0.weight'] == 0.05
    assert decay['stitch_layers.0.bias'] == 0


@pytest.mark.slow  # seconds
def test_the_schedule_warms_up_and_ends_low_for_both_rates(tmp_path):
    train(train_settings(tmp_path / 'run', epochs=10, warmup_epochs=2, lr=1e-3, stitch_lr=1e-2, min_lr=1e-5))
    rows = lines(tmp_path / 'run')
    rates = [row['lr'] for row in rows]
    assert rates[0] == pytest.approx(1e-7)
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[-1] < 5e-5
    assert max(row['stitch_lr'] for row in rows) == pytest.approx(1e-2, rel=0.1)


@pytest.mark.slow  # a second
def test_no_epochs_means_initialization_alone(tmp_path):
    folder = train(train_settings(tmp_path / 'run', epochs=0))
    assert StitchableNet.from_pretrained(folder).stitch_layers[0].weight.abs().sum() > 0


@pytest.mark.quick('options2')
@pytest.mark.parametrize('options', [{'amp': True}, {'clip_grad': 0.01, 'clip_mode': 'agc'}, {'init': 'kaiming'}])
def test_options_train(tmp_path, options):
    train(train_settings(tmp_path / 'run', epochs=1, **options))
    assert len(lines(tmp_path / 'run')) == 3


@pytest.mark.slow_for('changes25-batch_size 1 gives anchors.0.*a single value')
@pytest.mark.parametrize(
    ('changes', 'hint'),
    [
        ({'anchors': ''}, '--anchors'),
        ({'anchors': 'test_vit', 'freeze_anchors': True}, 'nothing to train'),
        ({'anchors': 'test_vit,tset_vit2'}, "unknown network 'tset_vit2'; did you mean test_vit2"),
        ({'init': 'random'}, 'init is one of joint, mean, kaiming'),
        ({'opt': 'adamm'}, "no optimizer 'adamm'"),
        ({'sched': 'cosin'}, "no schedule 'cosin'"),
        ({'warmup_epochs': 2}, 'warm-up of 2 epochs'),
        ({'batch_size': 0}, 'batch_size is at least 1'),
        ({'epochs': -1}, 'epochs is at least 0, not -1'),
        ({'checkpoint_steps': 0}, 'checkpoint_steps is at least 1'),
        ({'checkpoint_minutes': -1.0}, 'checkpoint_minutes is at least 0'),
        ({'checkpoint_keep': 0}, 'checkpoint_keep is at least 1'),
        ({'max_skips': 0}, 'max_skips is at least 1'),
        ({'timeout': float('inf')}, 'timeout is a finite number, not inf'),
        ({'timeout': 0.0}, 'timeout is a number of seconds above 0'),
        ({'unused_grads': 'some'}, "unused_grads is one of none, zero, not 'some'"),
        ({'clip_mode': 'hard'}, 'clip_mode is one of norm, value, agc'),
        ({'grad_accum_steps': 4}, 'an epoch has 3 batches, fewer than the 4 of one update: lower --grad-accum-steps'),
        ({'amp_dtype': 'int8'}, 'amp_dtype is one of'),
        ({'distill': 'firm'}, 'hard or soft'),
        ({'distill_alpha': 2.0}, '0 <= alpha <= 1'),
        ({'teacher': 'test_resnet', 'num_classes': 1000}, 'no weights for test_resnet'),
        ({'teacher': 'regnety_160'}, 'regnety_160 has 1000 classes, but the anchors have 4: name a teacher of these'),
        ({'dataset': 'hfds/x', 'data_dir': '.'}, "'train' of 'hfds/x' in '.': No module named 'datasets'"),
        ({'dataset': 'cifar/10', 'data_dir': '.'}, "no data set 'cifar/10': leave --dataset out"),
        (
            {'anchors': 'resnet10t,resnet18', 'batch_size': 1},
            'batch_size 1 gives anchors.0.*a single value',
        ),
        ({'mixup': 0.8, 'batch_size': 3}, 'batch_size 3 is odd'),
        ({'plugin': ['nowhere.py']}, "plugin file 'nowhere.py' does not exist"),
        ({'direction': 'up'}, 'fast_to_slow, slow_to_fast'),
        ({'smoothing': 1.5}, r'smoothing is at most 0\.99, not 1\.5'),
        ({'weight_decay': -1.0}, 'weight_decay is at least 0, not -1'),
        ({'distill_tau': 0.0, 'teacher': 'largest'}, 'a temperature above 0, but got tau=0.0'),
        ({'momentum': 2.0}, 'momentum is at most 1, not 2'),
        ({'lr': float('nan')}, 'lr is at least 0, not nan'),
        (
            {'ratio': (0.0, 0.0)},
            r'ratio is a range .* above 0 that rise, not 0\.0 and 0\.0',
        ),
        ({'reprob': 2.0}, 'reprob is at most 1, not 2'),
        ({'stitches_per_step': 2**31}, 'stitches_per_step is at most 1000, not 2147483648'),
        ({'aug_repeats': 10**9}, 'aug_repeats is at most 1000, not 1000000000'),
        ({'lr': 0.0}, 'with --lr 0 nothing is trained'),
        ({'lr': float('inf')}, 'lr is a finite number, not inf'),
        ({'aa': 'rand-m99'}, "aa 'rand-m99': m is at most 10, not 99"),
        ({'aa': 'rand-m12-mmax11-inc1'}, 'm is at most 11, not 12'),
        ({'aa': 'augmix-strong'}, "aa 'augmix-strong': 'strong' has no number"),
        ({'train_interpolation': 'foo'}, "train_interpolation is one of nearest, .*, not 'foo'"),
        ({'clip_grad': -1.0}, 'clip_grad is a number above 0, or absent, not -1'),
        ({'aa': 'foo'}, "timm makes no augmentation of aa 'foo' .*: Unknown AA policy foo"),
    ],
)
def test_bad_settings_are_one_sentence_and_write_nothing(tmp_path, changes, hint):
    with pytest.raises(SnnetError, match=hint) as error:
        train(train_settings(tmp_path / 'run', **changes))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_an_error_without_words_is_told_by_its_type():
    assert reason_of(EOFError()) == 'EOFError'
    assert reason_of(RuntimeError('\nfirst\nsecond')) == 'first'


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(tmp_path, monkeypatch):
    settings = train_settings(tmp_path / 'run', epochs=1, max_skips=2)
    with trainer(settings) as run:
        nan = lambda logits, targets, answer: logits.sum() * float('nan')  # noqa: E731
        monkeypatch.setattr(run.step.criterion, 'forward', nan)
        with pytest.raises(SnnetError, match='not finite in 2 steps in a row.* at step 1:'):
            run.run()
    assert [row['skipped'] for row in lines(tmp_path / 'run')] == [True, True]
