from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.nn import functional as F

from snnet import SnnetError
from snnet.training.make_step import make_step
from snnet.training.optimizer import make_optimizer
from snnet.training.train_step import TrainBatch
from snnet.utils.distributed import Ranks
from tests.helpers.families import CLASSES, build as build_net, images, shared_net, vit
from tests.helpers.rounding import assert_close_up_to_rounding
from tests.helpers.runs import train_settings

ONE = Ranks(0, 1, torch.device('cpu'))


def make(family='vit', **changes):
    """A step of one process on a net of its own; it draws the stitch that the test puts into `drawn`."""
    net = copy.deepcopy(shared_net(family)).train()
    settings = train_settings(Path('unused'), **{'smoothing': 0.0, 'epochs': 10, **changes})
    return make_step(settings, net, ONE, range(10))


def draw(step, *stitches):
    step.sampler = lambda number, rank, turn: stitches[turn]


def batch(count=4, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TrainBatch(seed, images(size, count, seed), torch.randint(CLASSES, (count,), generator=generator))


def gradients(step):
    return {name: p.grad.clone() for name, p in step.net.named_parameters() if p.grad is not None}


def weights(step):
    """And statistics."""
    return {name: value.clone() for name, value in step.net.state_dict().items() if value.is_floating_point()}


def close(one, other, rtol=1e-4):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=1e-6, msg=lambda m, n=name: f'{n}: {m}')


def bits(state):
    return {name: value.numpy().tobytes() for name, value in state.items()}


def moments(step):
    rows = step.optimizer.state_dict()['state'].items()
    return {f'{i}.{name}': torch.as_tensor(value).clone() for i, row in rows for name, value in row.items()}


def test_gradients_of_two_batches_add_up_to_those_of_one_twice_as_large():
    whole, parts = make(), make(grad_accum_steps=2)
    _, x, y = batch(8)
    halves = [TrainBatch(0, x[:4], y[:4]), TrainBatch(1, x[4:], y[4:])]
    for step, batches in ((whole, [TrainBatch(0, x, y)]), (parts, halves)):
        draw(step, 4)
        row, _ = step(0, batches, [])
        assert row['loss'] == pytest.approx(F.cross_entropy(shared_net('vit')(x, stitch=4), y).item(), rel=1e-5)
    close(gradients(whole), gradients(parts))


def test_gradients_of_several_stitches_are_the_mean_of_the_single_ones():
    singles = {}
    for stitch in (0, 3, 5):
        draw(step := make(), stitch)
        step(0, [batch()], [])
        singles[stitch] = gradients(step)
    draw(step := make(stitches_per_step=3), 0, 3, 5)
    row, _ = step(0, [batch()], [])
    assert row['stitch'] == [0, 3, 5]
    names = set().union(*singles.values())
    mean = {n: sum(found.get(n, torch.zeros(())) for found in singles.values()) / 3 for n in names}
    close(gradients(step), mean)


@pytest.mark.parametrize('kind', ['none', 'zero'])
def test_weights_that_take_no_part_move_by_momentum_only_if_their_gradients_are_zero(kind):
    step = make(unused_grads=kind, lr=0.1)
    for number, stitch in enumerate((0, 1)):  # the small anchor, then the large one
        draw(step, stitch)
        before = weights(step)
        step(number, [batch()], [])
        moved = {name for name, value in weights(step).items() if not torch.equal(value, before[name])}
    own, other = step.net.parameter_names(1), step.net.parameter_names(0)
    assert moved & own
    assert bool(moved & other) == (kind == 'zero')
    gave = {name for name, p in step.net.named_parameters() if p.grad is not None}
    assert gave == (own if kind == 'none' else {name for name, _ in step.net.named_parameters()})


def poisoned(value):
    found = batch(size=64)
    found.images[0, 0, 0, 0] = value
    return found


@pytest.mark.slow_for('none-inf')
@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('unused', ['none', 'zero'])
def test_a_step_whose_gradients_are_not_finite_leaves_everything_as_it_was(value, unused):
    step = make('resnet', unused_grads=unused)
    draw(step, 2)
    row, _ = step(0, [batch(size=64)], [])
    assert 'skipped' not in row
    before = bits(weights(step)), bits(moments(step))
    for number in (1, 2):
        row, _ = step(number, [poisoned(value)], [])
        assert row['skipped'] is True
        assert row['loss'] is None
        assert step.skips == number
    assert (bits(weights(step)), bits(moments(step))) == before
    assert any('running_mean' in name for name in before[0])
    step(3, [batch(size=64)], [])
    assert step.skips == 0
    assert bits(weights(step)) != before[0]


def test_a_step_that_is_left_out_changes_no_later_one():
    one, other = make('resnet'), make('resnet')
    draw(one, 2)
    draw(other, 2)
    one(0, [batch(size=64)], [])
    other(0, [poisoned(math.nan)], [])
    other(0, [batch(size=64)], [])
    assert bits(weights(one)) == bits(weights(other))


def test_clipping_bounds_the_norm_of_all_gradients():
    free, clipped = make(), make(clip_grad=0.01)
    for step in (free, clipped):
        draw(step, 3)
        step(0, [batch()], [])
    norm = torch.nn.utils.get_total_norm(gradients(free).values())
    assert norm > 0.1
    close(gradients(clipped), {name: 0.01 / norm * value for name, value in gradients(free).items()}, rtol=1e-3)


def test_half_precision_scales_its_gradients_and_leaves_out_what_overflows():
    step = make('vit', amp=True, amp_dtype='float16', lr=0.01)
    draw(step, 3)
    step.scaler.load_state_dict({**step.scaler.state_dict(), 'scale': 2.0**100})
    row, _ = step(0, [batch()], [])
    assert row['skipped']
    assert row['loss'] > 0
    assert step.scaler.get_scale() == 2.0**99
    step.scaler.update(2.0**16)
    row, _ = step(1, [batch()], [])
    assert 'skipped' not in row
    plain = make('vit', lr=0.01)
    draw(plain, 3)
    plain(1, [batch()], [])
    one, other = gradients(step), gradients(plain)
    difference = torch.nn.utils.get_total_norm([one[n] - other[n] for n in one])
    assert difference < 0.02 * torch.nn.utils.get_total_norm(other.values())


@pytest.mark.parametrize('family', ['vit', 'resnet'])
def test_recomputed_blocks_give_the_same_gradients_and_keep_less(family):
    size = 32 if family == 'vit' else 64
    kept, found = {}, {}
    for again in (False, True):
        step = make(family)
        for i in range(2):
            step.net.anchor(i).checkpointing = again
        draw(step, len(step.net.stitches) - 1)
        kept[again] = 0

        def pack(tensor, again=again):
            kept[again] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(0, [batch(size=size)], [])
        found[again] = gradients(step) | weights(step)
    assert bits(found[True]) == bits(found[False])
    assert kept[True] < 0.8 * kept[False]


@pytest.mark.parametrize('seed', [0, 1])
def test_recomputed_blocks_drop_the_same_paths(seed):
    makers = [(f'w{width}', partial(vit, width, drop_path_rate=0.5)) for width in (16, 24)]
    found = []
    for again in (False, True):
        step = make_step(train_settings(Path('unused'), seed=seed), build_net(*makers, size=32).train(), ONE, range(10))
        for i in range(2):
            step.net.anchor(i).checkpointing = again
        draw(step, 3)
        row, _ = step(0, [batch()], [])
        found.append((row['loss'], bits(gradients(step))))
    assert found[0] == found[1]
    assert found[0][0] != F.cross_entropy(step.net(batch().images, stitch=3), batch().targets).item()


@pytest.mark.parametrize('family', ['resnet', 'vit'])
def test_channels_last_gives_the_same_gradients_to_rounding(family):
    given = []
    plain, last = make(family), make(family, channels_last=True)
    last.net.to(memory_format=torch.channels_last)
    last.net.register_forward_pre_hook(lambda net, x: given.append(x[0]))
    for step in (plain, last):
        draw(step, 2)
        step(0, [batch(size=32 if family == 'vit' else 64)], [])
    assert given[0].is_contiguous(memory_format=torch.channels_last)
    pixels = 4 * 64 * 64  # the longest sums, of a bias's gradient, run over the pixels of all images
    assert_close_up_to_rounding(gradients(last), gradients(plain), terms=pixels)


def test_the_fused_optimizer_moves_weights_as_the_plain_one():
    plain, fused = make(), make(fused=True)
    for number in range(3):
        for step in (plain, fused):
            draw(step, number)
            step(number, [batch()], [])
    assert all(group['fused'] for group in fused.optimizer.param_groups)
    close(weights(plain), weights(fused), rtol=1e-2)


@pytest.mark.parametrize('opt', ['lamb', 'momentum', 'adan'])
def test_an_optimizer_that_has_no_fused_form_is_refused_in_a_sentence(opt):
    settings = train_settings(Path('unused'), opt=opt, fused=True)
    if opt == 'momentum':
        assert make_optimizer(shared_net('vit'), settings.optimizer)  # torch has a fused SGD
        return
    with pytest.raises(SnnetError, match=f"'{opt}'.*fused") as error:
        make_optimizer(shared_net('vit'), settings.optimizer)
    assert '\n' not in str(error.value)


def test_wishes_and_draws_of_a_step_depend_on_its_number_alone():
    one, other = make(), make()
    first, _ = one(0, [batch()], [])
    rows = [step(5, [batch()], [True, False]) for step in (one, other)]
    assert rows[0][1] == rows[1][1] == [True, False]
    assert rows[0][0]['stitch'] == rows[1][0]['stitch']
    assert rows[0][0]['lr'] == rows[1][0]['lr'] < first['lr']


def test_the_moving_average_follows_the_definition():
    step = make(lr=0.01)
    average = ModelEmaV3(step.net, decay=0.6, use_warmup=True)
    expected = copy.deepcopy(step.net.state_dict())
    for number in range(4):
        draw(step, number)
        step(number, [batch()], [])
        average.update(step.net, number + 1)
        decay = 0 if number == 0 else min(1 - (1 + number) ** (-2 / 3), 0.6)
        for name, value in step.net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    close(average.module.state_dict(), expected)
