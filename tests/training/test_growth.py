from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist

from snnet import SnnetError, StitchableNet
from snnet.errors import LostRanks
from snnet.reparam import expand, structure_of
from snnet.reparam.pool_statistics import grown_stitch_layers, pool_statistics
from snnet.reparam.scores import Scores
from snnet.stitching.stitch_layer import StitchLayer
from snnet.training import trainer as engine
from snnet.training.train_step import TrainStep
from snnet.training.trainer import train
from snnet.utils.files import sha256
from snnet.utils.plugins import import_plugins
from tests.helpers.families import images, shake
from tests.helpers.runs import in_two_processes, train_settings, trainer, write_images
from tests.reparam.test_stitch_branches import resnets

PLUGIN = [str(Path(__file__).parents[2] / 'examples' / 'grow.py')]
CNN = {'anchors': 'cifar_vgg', 'plugin': PLUGIN, 'num_classes': 10, 'img_size': None, 'opt': 'sgd', 'lr': 0.1}
TWO = {**CNN, 'anchors': 'cifar_thin8,cifar_thin20'}


@pytest.fixture(autouse=True, scope='module')
def plugin():
    import_plugins(PLUGIN)


class Killed(BaseException):
    """Ends a run as nothing else in it does."""


def stopped(monkeypatch, settings, number):
    call = TrainStep.__call__

    def stopping(self, step, batches, asks):
        if step == number:
            raise Killed
        return call(self, step, batches, asks)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(TrainStep, '__call__', stopping)
        train(settings)
        raise AssertionError('the run was not stopped')


def lines(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def changes(folder):
    return [(row['step'], c['module'], c['added'], c['cut']) for row in lines(folder) for c in row.get('changes', ())]


def newest(folder):
    return max((folder / 'checkpoints').glob('step-*'))


def ends(folder):
    """All that a run leaves: net, weights with moments, structure and scores, and log."""
    values = json.loads((newest(folder) / 'state.json').read_text())
    values.pop('loss')
    tensors = (newest(folder) / 'state.safetensors').read_bytes()
    return (folder / 'net' / 'model.safetensors').read_bytes(), tensors, values, (folder / 'log.jsonl').read_bytes()


BUSY = {
    'one network': {
        **CNN, 'grow_every': 2, 'grow_cut': '0.009', 'model_ema': True, 'model_ema_decay': 0.6, 'opt': 'momentum',
        'channels_last': True, 'clip_grad': 0.1, 'grad_accum_steps': 2, 'dataset': 'generated/16', 'epochs': 3,
        'batch_size': 2, 'stop': 7,
    },
    'stitch layers': {
        'grow_every': 1, 'stitches_per_step': 2, 'grad_checkpointing': True, 'drop_path': 0.3, 'stitch_lr': 0.01,
        'unused_grads': 'zero', 'epochs': 1, 'stop': 2,
    },
    'anchors and stitch layers within a budget': {
        **TWO, 'grow_every': 2, 'grow_budget': 2e7, 'grow_kinds': ['1x1', 'low_rank'], 'protect_anchors': 0.5,
        'epochs': 3, 'stop': 5, 'recalibrate': 4, 'amp': True, 'amp_dtype': 'float16', 'grow_score': 'vote',
    },
    'branches from the start': {**CNN, 'grow_static': True, 'stop': 4},
}  # fmt: skip


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('name', BUSY)
def test_a_run_that_is_killed_after_a_growth_ends_bit_for_bit_as_one_that_is_not(tmp_path, monkeypatch, name):
    options = dict(BUSY[name])
    stop = options.pop('stop')
    train(train_settings(tmp_path / 'whole', **options))
    settings = train_settings(tmp_path / 'stopped', checkpoint_steps=2, **options)
    stopped(monkeypatch, settings, stop)
    state = json.loads((newest(tmp_path / 'stopped') / 'state.json').read_text())
    assert state['step'] > 0
    assert state['grower']['structure']
    train(settings)
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


def grow_on(rank, store, folder, number):
    """A rank of a run that grows; the second ends itself in a step."""
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store), 'TORCHELASTIC_USE_AGENT_STORE': 'True'}
    os.environ |= {'WORLD_SIZE': '2', 'RANK': str(rank), 'TORCHELASTIC_RUN_ID': 'x'}
    call = TrainStep.__call__

    def stopping(self, step, batches, asks):
        if step == number and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, step, batches, asks)

    TrainStep.__call__ = stopping
    options = {**TWO, 'stitch_per_rank': True, 'grow_every': 1, 'check_steps': 1, 'recalibrate': 0}
    settings = train_settings(folder, dataset='generated/16', checkpoint_steps=2, timeout=60, **options)
    try:
        return str(train(settings))
    except LostRanks:
        return 'lost'


@pytest.mark.slow
def test_two_ranks_grow_alike_and_go_on_after_a_kill_bit_for_bit(tmp_path):
    def on_two(folder, number=None):
        store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
        return in_two_processes(grow_on, store.port, tmp_path / folder, number)

    assert on_two('whole') == [str(tmp_path / 'whole' / 'net')] * 2
    assert on_two('stopped', 3) == ['lost', None]
    assert json.loads((newest(tmp_path / 'stopped') / 'state.json').read_text())['grower']['structure']
    on_two('stopped')
    assert len(changes(tmp_path / 'whole')) >= 3
    assert ends(tmp_path / 'whole') == ends(tmp_path / 'stopped')


@pytest.mark.slow  # a few seconds
def test_a_run_leaves_the_plain_network_that_its_branches_were(tmp_path, monkeypatch):
    settings = train_settings(tmp_path, **TWO, grow_every=1, recalibrate=0, model_ema=True, model_ema_decay=0.5)
    with trainer(settings) as run:
        plain = {name: value.shape for name, value in run.net.state_dict().items()}
        costs = [(record.flops, record.params) for record in run.net.records]
        grown = {}
        fold = run.grower.fold

        def noted():
            x, net = images(32, 2), run.average.module.eval()
            grown.update(enumerate(net(x, stitch=i).detach() for i in range(len(net.stitches))))
            assert structure_of(net) == structure_of(run.net) != {}
            return fold()

        monkeypatch.setattr(run.grower, 'fold', noted)
        run.run()
    saved = StitchableNet.from_pretrained(tmp_path / 'net')
    assert {name: value.shape for name, value in saved.state_dict().items()} == plain
    assert [(record.flops, record.params) for record in saved.records] == costs
    for i, output in grown.items():
        assert torch.allclose(saved(images(32, 2), stitch=i), output, rtol=1e-4, atol=1e-5)


def test_the_log_tells_of_every_change_and_what_training_takes(tmp_path):
    train(train_settings(tmp_path, **CNN, grow_every=2, grow_kinds=['1x1', 'identity'], log_interval=1))
    rows = lines(tmp_path)
    assert [row['step'] for row in rows if 'changes' in row] == [1, 3]  # nothing changes at the last step, 5
    assert {kind for _, _, added, _ in changes(tmp_path) for kind in added} == {'1x1', 'identity'}
    flops = [row['train_flops'] for row in rows]
    assert flops[0] == 9 * ((24 + 64) * 1024 + (128 + 256) * 256 + (512 + 2 * 1024) * 64) + 320
    assert flops == sorted(flops)
    assert flops[0] < flops[-1]


@pytest.mark.slow  # seconds
def test_a_budget_is_filled_at_once_and_never_exceeded(tmp_path):
    with trainer(train_settings(tmp_path, **CNN, grow_every=1, grow_budget=8e6)) as run:
        begin = run.grower.flops
        run.run()
        assert begin < 8e6 * 0.5
    first = changes(tmp_path)
    assert len([change for change in first if change[0] == 0]) > 1
    assert max(row['train_flops'] for row in lines(tmp_path)) <= 8e6


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    ('options', 'grown'),
    [
        ({**TWO, 'freeze_anchors': True}, 'stitch_layers.'),
        ({**TWO, 'grow_where': ['stitch_layers.0', 'anchors.0.model.conv1']}, ('stitch_layers.0', 'anchors.0.model.c')),
    ],
)
def test_what_grows_is_what_is_trained_and_named(tmp_path, options, grown):
    train(train_settings(tmp_path, **options, grow_every=1, recalibrate=0, epochs=3))
    assert changes(tmp_path)
    assert all(name.startswith(grown) for _, name, _, _ in changes(tmp_path))


@pytest.mark.slow  # seconds
def test_branches_from_the_start_keep_weights_that_were_learnt(tmp_path):
    learnt = timm.create_model('cifar_vgg').eval()
    save_file(learnt.state_dict(), tmp_path / 'w.safetensors')
    options = {**CNN, 'anchors': f'cifar_vgg={tmp_path}/w.safetensors', 'grow_static': True}
    with trainer(train_settings(tmp_path / 'run', **options, epochs=0)) as run:
        run.run()
    saved = StitchableNet.from_pretrained(tmp_path / 'run' / 'net')
    x = images(32, 2)
    assert torch.allclose(saved(x), learnt(x), rtol=1e-4, atol=1e-5)
    name = 'anchors.0.model.features.3.weight'
    before, after = learnt.features[3].weight, load_file(tmp_path / 'run' / 'net' / 'model.safetensors')[name]
    assert torch.allclose(before, after, atol=1e-6)


def test_steps_that_are_left_out_do_not_count_and_leave_no_score(tmp_path, monkeypatch):
    call = TrainStep.__call__

    def blind(self, step, batches, asks):
        if step == 1:
            batches = [batch._replace(images=batch.images * float('nan')) for batch in batches]
        return call(self, step, batches, asks)

    monkeypatch.setattr(TrainStep, '__call__', blind)
    train(train_settings(tmp_path, **CNN, grow_every=2))
    assert [step for step, *_ in changes(tmp_path)] == [2, 4]


def test_a_score_that_is_no_number_ends_the_run_with_a_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(Scores, 'values', lambda self: {})
    monkeypatch.setattr('snnet.reparam.scores.score_of_batch', lambda *args: torch.tensor(float('nan')))
    with pytest.raises(SnnetError, match=r'the score snip of anchors\.0\.model\.features\.\d+ is not a number'):
        train(train_settings(tmp_path, **CNN, grow_every=2))
    assert newest(tmp_path).name == 'step-00000000'


@pytest.mark.slow  # seconds
def test_a_checkpoint_of_another_structure_is_refused_in_a_sentence(tmp_path, monkeypatch):
    settings = train_settings(tmp_path, **CNN, grow_every=1, checkpoint_steps=2)
    stopped(monkeypatch, settings, 3)
    file = newest(tmp_path) / 'state.json'
    values = json.loads(file.read_text())
    values['grower']['structure']['anchors.0.model.fc'] = ['1x1']
    file.write_text(json.dumps(values))
    sums = [f'{sha256(file.parent / name)}  {name}' for name in (file.name, 'state.safetensors')]
    (file.parent / 'SHA256SUMS').write_text('\n'.join(sums))
    with pytest.raises(
        SnnetError, match='structure does not match the network: anchors.0.model.fc can have no'
    ) as told:
        train(settings)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize(
    ('options', 'hint'),
    [
        ({'grow_every': 0}, 'grow_every is at least 1, not 0'),
        ({'grow_every': -3}, 'grow_every is at least 1, not -3'),
        ({'grow_every': 6}, 'grow_every 6 leaves no step .* the run has 6 steps'),
        ({'grow_every': 2, 'grow_score': 'snap'}, "grow_score must be one of random, .*, not 'snap'"),
        ({'grow_every': 2, 'grow_score': 'grasp'}, 'needs a training loop of your own'),
        ({'grow_every': 2, 'grow_cut': 'some'}, "'published', 'none' or an importance .*, not 'some'"),
        ({'grow_every': 2, 'grow_cut': '-1'}, "not '-1'"),
        ({'grow_every': 2, 'grow_cut': 'nan'}, "not 'nan'"),
        ({'grow_every': 2, 'grow_budget': -1.0}, 'a budget is a positive number'),
        ({'grow_every': 2, 'grow_budget': 1e5}, 'grow_budget 1e.05 leaves no room .* take 3.171e.06'),
        ({'grow_every': 2, 'grow_kinds': ['3x3']}, "there is no branch '3x3', only 1x1"),
        ({'grow_every': 2, 'grow_where': ['anchors.7']}, "the net has no module 'anchors.7'"),
        ({'grow_every': 2, 'grow_where': ['anchors.0.model.fc']}, 'fc can have no branches: a Linear is not'),
        ({'grow_every': 2, 'grow_static': True}, 'do not go together'),
        ({'grow_every': 2, 'grow_every_epochs': 1}, 'one counts steps, the other epochs'),
        (
            {'grow_every_epochs': 2},
            'grow_every_epochs 2 leaves no step .* the run has 6 steps: lower --grow-every-epochs',
        ),
        ({'grow_every_epochs': 0}, 'grow_every_epochs is at least 1, not 0'),
        (
            {'grow_every': 4, 'grow_until': 1},
            'grow_until 1 lets nothing grow, .* ends after 4 steps and epoch 1 after 3',
        ),
        ({'grow_until': 1}, 'grow_until has no meaning without grow_every'),
        ({'grow_every': 2, 'compile': True}, 'compile does not go together'),
        ({'grow_every': 2, 'grow_kinds': ['low_rank'], 'anchors': 'test_vit', 'img_size': 32}, 'nothing to grow'),
        ({'grow_budget': 1e9}, 'grow_budget has no meaning without grow_every'),
        ({'grow_kinds': ['1x1']}, 'grow_kinds has no meaning without grow_every'),
        ({'grow_static': True, 'grow_score': 'snip', 'grow_cut': 'none'}, 'grow_cut has no meaning without'),
    ],
)
def test_bad_settings_are_one_sentence_and_write_nothing(tmp_path, options, hint):
    with pytest.raises(SnnetError, match=hint) as told:
        train(train_settings(tmp_path / 'run', **{**CNN, **options}))
    assert '\n' not in str(told.value)
    assert not (tmp_path / 'run').exists()


def test_low_rank_updates_leave_nothing_to_grow(tmp_path):
    options = {'stitch_rank': 2, 'freeze_anchors': True, 'grow_every': 2}
    with pytest.raises(SnnetError, match='nothing to grow'):
        train(train_settings(tmp_path / 'run', **options))


def test_a_synflow_score_warns(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(engine, 'set_up_logging', lambda *args, **kwargs: None)
    caplog.set_level(logging.WARNING, 'snnet')
    train(train_settings(tmp_path, **CNN, grow_every=2, grow_score='synflow', epochs=1))
    assert 'synflow is zero for every convolution' in caplog.text


@pytest.mark.slow  # a few seconds
def test_the_example_compares_ways_at_equal_epochs_and_draws_the_structure(tmp_path, monkeypatch):
    import grow

    for split in ('train', 'validation'):
        write_images(tmp_path / 'images' / split, 10, 4)
    monkeypatch.setitem(grow.NETWORKS, 'vgg', {**grow.NETWORKS['vgg'], 'epochs': 1, 'batch_size': 2})
    rows = [grow.run('vgg', way, 1, tmp_path, tmp_path) for way in ('plain', 'DyRep, every 10 steps')]
    assert [len(row['changes']) for row in rows] == [0, 1]  # after 10 of 20 steps; the last step changes nothing
    assert rows[0]['flops'] == 1
    assert 1.01 < rows[1]['flops'] < 1.5
    row = grow.table(rows).splitlines()[-1]
    assert row.startswith('| vgg | DyRep, every 10 steps |')
    assert f'{rows[1]["top1"] - rows[0]["top1"]:+.2f}' in row
    grow.draw(rows, tmp_path / 'structure.svg')
    assert (tmp_path / 'structure.svg').stat().st_size > 5000


@pytest.mark.quick('options2-steps2')
@pytest.mark.parametrize(
    ('options', 'steps'),
    [
        ({'grow_every': 2}, {1, 3}),  # what grows at the last step, 5, would not be trained
        ({'grow_every': 1, 'grow_until': 1}, {0, 1, 2}),
        ({'grow_every_epochs': 1}, {2}),
    ],
)
def test_branches_change_until_they_are_told_to_stay(tmp_path, options, steps):
    train(train_settings(tmp_path, **{**CNN, 'epochs': 2}, **options, grow_cut='none', log_interval=1))
    assert {step for step, *_ in changes(tmp_path)} == steps


def test_grown_stitch_layers_are_folded_with_the_statistics_of_all_their_stitches():
    net = resnets().float()
    expand(net, where=[name for name, module in net.named_modules() if isinstance(module, StitchLayer)])
    shake(net, 1).eval()
    batches = [images(32, 4, seed=seed) for seed in (1, 2)]
    pool_statistics(net, batches)
    for name, layer in grown_stitch_layers(net).items():
        inputs = []
        handle = layer.norm.register_forward_pre_hook(lambda module, args, seen=inputs: seen.append(args[0]))
        for x in batches:
            for stitch in range(len(net.stitches)):
                if f'{name}.weight' in net.parameter_names(stitch):
                    net(x, stitch=stitch)
        handle.remove()
        var, mean = torch.var_mean(torch.cat(inputs).double(), dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(layer.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.norm.running_var.double(), var, rtol=1e-4, atol=1e-5)
