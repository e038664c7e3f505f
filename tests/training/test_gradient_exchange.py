from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import distributed as dist, nn
from torch.nn import functional as F

from snnet.errors import LostRanks
from snnet.training.gradient_exchange import Exchange
from snnet.training.make_step import make_step
from snnet.training.train_step import TrainBatch
from snnet.utils.distributed import Ranks, ranks
from tests.helpers.families import CLASSES, images, shared_net
from tests.helpers.rounding import assert_close_up_to_rounding
from tests.helpers.runs import in_two_processes, on_two_ranks, train_settings

SIZES = {'vit': 32, 'resnet': 64}
TERMS = 8 * 17
"""Length of the longest sums behind a gradient of the ViT: the tokens of the images of both ranks."""


def net_of(family):
    return copy.deepcopy(shared_net(family)).train()


def batch_of(family, rank=0, count=4):
    """The share of a rank of a batch of 8."""
    labels = torch.randint(CLASSES, (8,), generator=torch.Generator().manual_seed(1))
    part = slice(4 * rank, 4 * rank + count)
    return TrainBatch(0, images(SIZES[family], 8)[part], labels[part])


def gradients(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def statistics(net):
    return {name: value.clone() for name, value in net.named_buffers() if 'running' in name}


def digest(net):
    bits = b''.join(p.detach().numpy().tobytes() for p in net.parameters())
    return hashlib.sha256(bits).hexdigest()


def step_of(ranks, family, **changes):
    options = {'smoothing': 0.0, 'epochs': 10, 'anchors': 'a,b', **changes}
    return make_step(train_settings(Path('unused'), **options), net_of(family), ranks, range(10))


def exchanged(ranks, stitches):
    """Gradients after an exchange where each rank has run one of two stitches, and the bytes that traveled."""
    net, sent = net_of('vit'), []
    exchange = Exchange(net, ranks)
    all_reduce = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        sent.append(tensor.nbytes)
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    _, x, y = batch_of('vit', ranks.rank)
    F.cross_entropy(net(x, stitch=stitches[ranks.rank]), y).backward()
    numbers = exchange.average(exchange.active(stitches), torch.tensor([ranks.rank, 5.0], dtype=torch.float64))
    return gradients(net), sum(sent), numbers.tolist()


def through_ddp(ranks, stitches):
    """The same by torch's way, which finds out in the backward pass what took part."""
    net = net_of('vit')
    _, x, y = batch_of('vit', ranks.rank)
    wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    F.cross_entropy(wrapped(x, stitch=stitches[ranks.rank]), y).backward()
    return gradients(net)


@pytest.mark.parametrize('stitches', [(4, 4), (0, 4), (0, 1)])
def test_averaged_gradients_are_those_of_one_process_and_of_torchs_own_way(stitches):
    (mine, sent, numbers), (other, _, _) = on_two_ranks(exchanged, stitches)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert numbers == [0.5, 5.0]
    net = net_of('vit')
    for rank, stitch in enumerate(stitches):
        _, x, y = batch_of('vit', rank)
        (F.cross_entropy(net(x, stitch=stitch), y) / 2).backward()
    assert_close_up_to_rounding(mine, gradients(net), TERMS)
    names = net.parameter_names(stitches[0]) | net.parameter_names(stitches[1])
    assert mine.keys() == names
    assert sent == sum(p.nbytes for name, p in net.named_parameters() if name in names) + 2 * 8
    assert sent < sum(p.nbytes for p in net.parameters()) or stitches == (0, 1)
    if stitches == (4, 4):
        found = on_two_ranks(through_ddp, stitches)[0]
        assert all(not found[name].any() for name in found.keys() - names)
        assert_close_up_to_rounding(mine, {name: found[name] for name in names}, TERMS)


def trained(ranks, family, steps, options):
    step = step_of(ranks, family, **options)
    rows = [step(number, [batch_of(family, ranks.rank)], [ranks.first, False]) for number in range(steps)]
    return {
        'rows': rows,
        'weights': digest(step.net),
        'gradients': set(gradients(step.net)),
        'statistics': statistics(step.net),
        'differing': step.exchange.differing_ranks(),
    }


@pytest.mark.parametrize('options', [{'stitch_per_rank': True, 'stitches_per_step': 2}, {'unused_grads': 'zero'}])
def test_weights_and_statistics_stay_equal_on_all_ranks(options):
    one, two = on_two_ranks(trained, 'resnet', 4, options)
    assert one['weights'] == two['weights']
    assert one['gradients'] == two['gradients']
    assert one['differing'] == two['differing'] == {}
    assert all(torch.equal(value, two['statistics'][name]) for name, value in one['statistics'].items())
    drawn = [[row['stitch'] for row, _ in found['rows']] for found in (one, two)]
    assert (drawn[0] == drawn[1]) == ('stitch_per_rank' not in options)
    assert [row['loss'] for row, _ in one['rows']] == [row['loss'] for row, _ in two['rows']]
    assert [wishes for _, wishes in one['rows'] + two['rows']] == [[True, False]] * 8


def test_two_ranks_move_weights_as_one_process_with_the_joined_batch():
    one, _ = on_two_ranks(moved, 'vit')
    step = step_of(Ranks(0, 1, torch.device('cpu')), 'vit', lr=0.01, opt='momentum')
    before = {name: p.detach().clone() for name, p in step.net.named_parameters()}
    for number in range(3):
        step(number, [batch_of('vit', count=8)], [])
    assert_close_up_to_rounding({n: p.detach() for n, p in step.net.named_parameters()}, one, TERMS)
    assert any(not torch.allclose(one[name], before[name], atol=1e-4) for name in one)


def moved(ranks, family):
    step = step_of(ranks, family, lr=0.01, opt='momentum')
    for number in range(3):
        step(number, [batch_of(family, ranks.rank)], [])
    return {name: p.detach().clone() for name, p in step.net.named_parameters()}


def averaged_statistics(ranks):
    net = net_of('resnet')
    exchange = Exchange(net, ranks)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if 'running' in name:
                buffer.fill_(1.0 + 2 * ranks.rank)
    active = exchange.active([0])
    exchange.average(active, torch.zeros(1, dtype=torch.float64))
    used = {name.rpartition('.')[0] for name in net.parameter_names(0)}
    found = {name: set(value.unique().tolist()) for name, value in statistics(net).items()}
    return [found[n] for n in found if n.rpartition('.')[0] in used], [
        found[n] for n in found if n.rpartition('.')[0] not in used
    ]


def test_statistics_are_averaged_for_layers_that_took_part_alone():
    for rank, (used, unused) in enumerate(on_two_ranks(averaged_statistics)):
        assert used
        assert unused
        assert used == [{2.0}] * len(used)
        assert unused == [{1.0 + 2 * rank}] * len(unused)


def differences_of(ranks, changes):
    net = net_of('vit')
    if ranks.rank == 1:
        with torch.no_grad():
            next(net.parameters()).add_(1)
    exchange = Exchange(net, ranks)  # copies the first rank's weights
    found = [exchange.differing_ranks()]
    for name, change in changes:
        flat = net.get_parameter(name).detach().view(-1)
        kept = flat[-1].clone()
        if ranks.rank == 1:
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0)) if change == 'least' else flat[-1] + change
        found.append(exchange.differing_ranks())
        flat[-1] = kept
    return found


def test_a_single_weight_that_differs_is_found_and_named_on_all_ranks():
    names = ('anchors.1.model.blocks.2.mlp.fc1.weight', 'stitch_layers.0.bias')
    changes = [(name, change) for name in names for change in ('least', 1e-6, float('nan'))]
    assert on_two_ranks(differences_of, changes) == [[{}, *({1: name} for name, _ in changes)]] * 2


def poisoned(ranks):
    step = step_of(ranks, 'resnet')
    step.sampler = lambda number, rank, turn: 2
    batch = batch_of('resnet', ranks.rank)
    found = []
    for number, where in enumerate((None, 0, 1)):
        before = digest(step.net), statistics(step.net)
        broken = batch._replace(images=batch.images * float('nan')) if ranks.rank == where else batch
        row, _ = step(number, [broken], [])
        same = all(torch.equal(value, before[1][name]) for name, value in statistics(step.net).items())
        found.append((row.get('skipped', False), row['loss'] is None, digest(step.net) == before[0], same))
    return found


def test_nan_on_one_rank_makes_both_leave_the_step_out():
    assert on_two_ranks(poisoned) == [[(False,) * 4, (True,) * 4, (True,) * 4]] * 2


def left_alone(ranks):
    step = step_of(ranks, 'vit')
    step(0, [batch_of('vit', ranks.rank)], [])
    if ranks.rank == 1:
        os._exit(3)
    try:
        step(1, [batch_of('vit', ranks.rank)], [])
    except LostRanks as error:
        return str(error)


def test_a_rank_that_loses_the_others_says_so_in_a_sentence():
    told, _ = on_two_ranks(left_alone)
    assert told.startswith('rank 0 lost the other 1 ranks: ')
    assert '\n' not in told


def attempt(rank, port, count, dies):
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'RANK': str(rank), 'LOCAL_RANK': str(rank)}
    os.environ |= {'WORLD_SIZE': '2', 'TORCHELASTIC_RESTART_COUNT': count, 'TORCHELASTIC_USE_AGENT_STORE': 'True'}
    with ranks('cpu', timeout=20) as group:
        total = torch.tensor(group.rank + 1)
        group.all_reduce(total)
        if dies:
            os._exit(1)
        return int(total), group.share({'from': rank})


def test_ranks_that_are_started_again_meet_over_the_store_of_their_launcher():
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    assert in_two_processes(attempt, store.port, '0', True) == [None, None]
    assert in_two_processes(attempt, store.port, '1', False) == [(3, {'from': 0})] * 2
