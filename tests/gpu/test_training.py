from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snnet.training.make_step import make_step
from snnet.training.train_step import TrainBatch, TrainStep
from snnet.training.trainer import train
from snnet.utils.distributed import Ranks
from tests.helpers.families import CLASSES, images, shared_net
from tests.helpers.runs import train_settings

pytestmark = pytest.mark.gpu
ROOT = __file__.rpartition('/tests/')[0]
WIDTHS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


class Killed(BaseException):
    """Ends a run as nothing else in it does."""


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


CASES = {
    'plain': {},
    'bfloat16': {'amp': True, 'amp_dtype': 'bfloat16', 'drop_path': 0.3, 'mixup': 0.8},
    'float16': {'amp': True, 'amp_dtype': 'float16', 'model_ema': True, 'model_ema_decay': 0.6, 'fused': True},
    'convolutions': {
        'anchors': 'cifar_resnet20,cifar_resnet32', 'plugin': [f'{ROOT}/examples/cifar10_resnet.py'], 'num_classes': 10,
        'img_size': None, 'channels_last': True,
    },
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_a_run_that_is_killed_ends_bit_for_bit_as_one_that_is_not(tmp_path, monkeypatch, device, deterministic, name):
    changes = {**CASES[name], 'device': device.type, 'checkpoint_steps': 2}
    train(train_settings(tmp_path / 'whole', **changes))
    call = TrainStep.__call__

    def dying(self, step, batches, asks):
        if step == 3:
            raise Killed
        return call(self, step, batches, asks)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(TrainStep, '__call__', dying)
        train(train_settings(tmp_path / 'killed', **changes))
        raise AssertionError('the run was not killed')
    train(train_settings(tmp_path / 'killed', **changes))
    nets = [load_file(tmp_path / name / 'net' / 'model.safetensors') for name in ('whole', 'killed')]
    assert [name for name, value in nets[0].items() if not torch.equal(value, nets[1][name])] == []
    logs = [(tmp_path / name / 'log.jsonl').read_bytes() for name in ('whole', 'killed')]
    assert logs[0] == logs[1]


def gradients(device, stitch, **changes):
    """Of one step of a net, as float32 on the CPU, and the loss."""
    net = copy.deepcopy(shared_net('vit')).to(device).train()
    settings = train_settings(Path('unused'), device=device.type, smoothing=0.0, **changes)
    step = make_step(settings, net, Ranks(0, 1, device), range(10))
    step.sampler = lambda *_: stitch
    labels = torch.randint(CLASSES, (8,), generator=torch.Generator().manual_seed(0))
    row, _ = step(0, [TrainBatch(0, images(32, 8), labels)], [])
    assert 'skipped' not in row
    return row['loss'], {n: p.grad.float().cpu() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('stitch', [0, 1, 4])
@pytest.mark.parametrize('width', WIDTHS)
def test_gradients_are_those_of_the_cpu_up_to_the_precision(device, stitch, width):
    amp = {} if width == 'float32' else {'amp': True, 'amp_dtype': width}
    loss, found = gradients(device, stitch, **amp)
    wanted_loss, wanted = gradients(torch.device('cpu'), stitch)
    # relative to all gradients together: single ones cancel. Errors of the roundings in some fifty layers add up
    bound = 50 * torch.finfo(WIDTHS[width]).eps
    assert loss == pytest.approx(wanted_loss, rel=bound)
    assert found.keys() == wanted.keys()
    error = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted) ** 0.5
    assert error <= bound * sum(float(w.square().sum()) for w in wanted.values()) ** 0.5


def test_gradients_that_overflow_in_half_precision_move_nothing_and_lower_the_scale(device):
    net = copy.deepcopy(shared_net('vit')).to(device).train()
    settings = train_settings(Path('unused'), device=device.type, amp=True, amp_dtype='float16')
    step = make_step(settings, net, Ranks(0, 1, device), range(10))
    step.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**60)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    row, _ = step(0, [TrainBatch(0, images(32, 8), torch.zeros(8, dtype=torch.long))], [])
    assert row['skipped']
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert step.scaler.get_scale() < 2.0**60
