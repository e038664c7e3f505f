from __future__ import annotations

import copy
import hashlib
import itertools
import os
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import distributed as dist, nn
from torch.nn import functional as F

from snnet.errors import LostRanks, SnnetError
from snnet.training import gradient_buckets
from snnet.training.gradient_buckets import GradientBuckets
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
    numbers = exchange.average(
        exchange.active([[stitch] for stitch in stitches]), torch.tensor([ranks.rank, 5.0], dtype=torch.float64)
    )
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


WAYS_TO_RUN = [{'stitch_per_rank': True, 'stitches_per_step': 2}, {'opt': 'momentum'}]


def sent_during_or_after(ranks):
    """For each way to run, the weights after steps whose gradients are sent during the backward pass, and after it.

    Beside the weights: the share of buckets that were sent when the last backward pass of each step ended.
    """
    gradient_buckets._BUCKET = 1 << 18
    sending, found = GradientBuckets.sending, []
    for options, during in itertools.product(WAYS_TO_RUN, (True, False)):
        early = []

        @contextmanager
        def watched(buckets, during=during, early=early):
            with sending(buckets) if during else nullcontext():
                yield
            early.append(len(buckets._messages) / len(buckets._buckets))

        GradientBuckets.sending = watched
        step = step_of(ranks, 'vit', lr=0.01, grad_accum_steps=2, **options)
        for number in range(2):
            step(number, [batch_of('vit', ranks.rank), batch_of('vit', 1 - ranks.rank)], [])
        found.append((digest(step.net), early))
    return found


def test_weights_do_not_depend_on_when_gradients_are_sent():
    one, two = on_two_ranks(sent_during_or_after)
    assert one == two
    for (during, early), (after, late) in zip(one[::2], one[1::2], strict=True):
        assert during == after
        assert (early, late) == ([1, 1], [0, 0])


def events_of(ranks, stitches):
    """The events of a backward pass in order: the size of a bucket that is sent, the name of a complete gradient."""
    gradient_buckets._BUCKET = 1
    net, events = net_of('vit'), []
    all_reduce = dist.all_reduce

    def noted(tensor, *args, **kwargs):
        events.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    _, x, y = batch_of('vit', ranks.rank)
    active = Exchange(net, ranks).active([[stitch] for stitch in stitches])
    for name, parameter in net.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
    dist.all_reduce = noted
    with active.gradients.sending():
        F.cross_entropy(net(x, stitch=stitches[ranks.rank]), y).backward()
    return events


@pytest.mark.parametrize('stitches', [(4, 4), (0, 4)])
def test_ranks_send_buckets_in_one_order_while_the_backward_pass_runs(stitches):
    found = on_two_ranks(events_of, stitches)
    sent = [[event for event in events if isinstance(event, int)] for events in found]
    names = [shared_net('vit').parameter_names(stitch) for stitch in stitches]
    assert sent[0] == sent[1]
    assert len(sent[0]) == len(names[0] | names[1])
    for events, own in zip(found, names, strict=True):
        assert {event for event in events if isinstance(event, str)} == own
    if stitches == (4, 4):  # from the classifier to the stem, a gradient and a bucket take turns
        early = found[0][: len(found[0]) // 2]
        assert sum(isinstance(event, int) for event in early) > 0.4 * len(early)


class BackwardError(Exception):
    pass


def refused(ranks):
    """What a rank says of a gradient that changes late, and of an error in the backward pass; and what is left."""
    gradient_buckets._BUCKET = 1
    net = net_of('vit')
    exchange = Exchange(net, ranks)
    steps = [exchange.active([[0], [0]]) for _ in range(2)]
    _, x, y = batch_of('vit', ranks.rank)
    errors = []
    try:
        with steps[0].gradients.sending():
            for _ in range(2):
                F.cross_entropy(net(x, stitch=0), y).backward()
    except SnnetError as error:
        errors.append(str(error))

    def fail(gradient):
        raise BackwardError('in the stem')

    if ranks.rank == 1:
        stem = net.anchors[0].model.patch_embed
        stem.register_forward_hook(lambda module, inputs, output: output.register_hook(fail) and None)
    net.zero_grad()
    try:
        with steps[1].gradients.sending():
            F.cross_entropy(net(x, stitch=0), y).backward()
        if ranks.rank == 0:
            exchange.average(steps[1], torch.zeros(1, dtype=torch.float64))
    except (BackwardError, LostRanks) as error:
        errors.append(type(error))
    hooks = [name for name, parameter in net.named_parameters() if parameter._post_accumulate_grad_hooks]
    messages = [message for step in steps for message in step.gradients._messages]
    return errors, hooks, len(messages), sum(not message.work.is_completed() for message in messages)


def test_errors_in_the_backward_pass_are_told_and_leave_no_hook_and_nothing_on_its_way():
    for (errors, *left), kind in zip(on_two_ranks(refused), (LostRanks, BackwardError), strict=True):
        late, other = errors
        assert re.search(r'has changed after it was sent.*use_reentrant=True', late)
        assert other is kind
        hooks, sent, under_way = left
        assert sent > 10
        assert (hooks, under_way) == ([], 0)


def averaged_statistics(ranks):
    net = net_of('resnet')
    exchange = Exchange(net, ranks)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if 'running' in name:
                buffer.fill_(1.0 + 2 * ranks.rank)
    active = exchange.active([[0], [0]])
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
