"""Stitches take statistics of their own only where these give more right answers on images that they did not see."""

from __future__ import annotations

import copy
import logging
import threading

import pytest
import torch

import snnet
from snnet import StitchableNet
from snnet.calibration.chosen_statistics import _ranges
from snnet.calibration.measure_statistics import StatisticsMeter
from snnet.net.shared_prefixes import all_logits
from tests.helpers.families import family_net, images

X = images(64, 48, seed=4)
MEASURED, HELD_OUT = X[::2], X[1::2]


def logits(net, stitch, x):
    with torch.no_grad():
        return net(x, stitch=stitch)


def right(net, stitch, x, classes):
    return int((logits(net, stitch, x).argmax(1) == classes).sum())


@pytest.fixture(scope='module')
def plain():
    return family_net('resnet')


@pytest.fixture(scope='module')
def exact(plain):
    """With exact statistics of the images that `recalibrate` measures of X."""
    net = copy.deepcopy(plain)
    snnet.recalibrate(net, [MEASURED], samples=24, shares=[1])
    return net


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('stitch', [0, 1, 4])
def test_statistics_that_give_the_right_answers_are_kept_whole(plain, exact, stitch):
    classes = logits(exact, stitch, X).argmax(1)
    net = copy.deepcopy(plain)
    assert right(net, stitch, HELD_OUT, classes[1::2]) < 24, 'the anchors answer otherwise'
    snnet.recalibrate(net, [(X, classes)], samples=48)
    assert net.statistics.shares[stitch] == 1
    assert (net.statistics.samples, net.statistics.held_out) == (24, 24)
    assert torch.equal(logits(net, stitch, X), logits(exact, stitch, X))
    assert net.records[stitch].recalibrated == 1


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('stitch', [0, 1, 4])
def test_a_stitch_that_is_right_already_keeps_its_outputs_bit_for_bit(plain, stitch):
    net = copy.deepcopy(plain)
    snnet.recalibrate(net, [(X, logits(plain, stitch, X).argmax(1))], samples=48)
    assert net.statistics.shares[stitch] == 0
    assert net.records[stitch].recalibrated == 0
    assert torch.equal(logits(net, stitch, X), logits(plain, stitch, X))


@pytest.mark.slow  # a few seconds
def test_without_classes_the_largest_anchor_judges_and_so_never_changes(plain):
    net = copy.deepcopy(plain)
    snnet.recalibrate(net, [X], samples=48)
    assert torch.equal(logits(net, 1, X), logits(plain, 1, X))
    answers = logits(plain, 1, HELD_OUT).argmax(1)
    for stitch, share in net.statistics.shares.items():
        before, after = right(plain, stitch, HELD_OUT, answers), right(net, stitch, HELD_OUT, answers)
        assert after > before if share else after == before


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('seed', range(3))
def test_no_stitch_gets_fewer_held_out_images_right_whatever_the_classes(plain, seed):
    classes = torch.randint(0, 7, (48,), generator=torch.Generator().manual_seed(seed))
    net = copy.deepcopy(plain)
    snnet.recalibrate(net, [(MEASURED, classes[::2])], samples=24, held_out=[(HELD_OUT, classes[1::2])])
    for stitch, share in net.statistics.shares.items():
        gain = right(net, stitch, HELD_OUT, classes[1::2]) - right(plain, stitch, HELD_OUT, classes[1::2])
        assert gain > 0 if share else gain == 0


@pytest.mark.slow
def test_shares_of_classes_judge_like_the_classes_that_they_single_out(plain, exact):
    classes = logits(exact, 4, X).argmax(1)
    nets = [copy.deepcopy(plain), copy.deepcopy(plain)]
    for net, targets in zip(nets, (classes, torch.nn.functional.one_hot(classes, 7).double()), strict=True):
        snnet.recalibrate(net, [(X, targets)], samples=48)
    assert nets[0].statistics.shares == nets[1].statistics.shares
    assert nets[0].statistics.digest() == nets[1].statistics.digest()


@pytest.mark.slow  # seconds
def test_statistics_that_a_stitch_has_are_replaced_by_better_ones_only(plain, exact):
    classes = logits(exact, 4, HELD_OUT).argmax(1)
    net = copy.deepcopy(exact)
    snnet.recalibrate(net, [images(64, 4, seed=9)], samples=4, held_out=[(HELD_OUT, classes)], stitches=[3, 4])
    assert net.statistics.shares[4] == 1
    for stitch in {*range(len(net.stitches))} - {3}:
        assert torch.equal(logits(net, stitch, X), logits(exact, stitch, X))
    assert right(net, 3, HELD_OUT, classes) >= right(exact, 3, HELD_OUT, classes)


@pytest.fixture(scope='module')
def mixed(plain, exact):
    """Stitches of three shares, two of which run the same front."""
    net = copy.deepcopy(plain)
    snnet.recalibrate(net, [MEASURED], samples=24, stitches=[0, 3, 5], shares=[1])
    first = net.statistics
    snnet.recalibrate(net, [MEASURED], samples=24, stitches=[2, 4], shares=[0.3])
    groups = [*first.groups, *net.statistics.groups]
    values = {**first.mixed(net, [0, 3, 5]), **net.statistics.mixed(net, [2, 4])}
    net.set_statistics(snnet.net.stitch_statistics.Statistics(net, values, groups, 24, 7))
    return net


@pytest.mark.slow  # a few seconds
def test_mixtures_run_alike_alone_with_shared_parts_extracted_and_loaded(mixed, plain, exact, tmp_path):
    mixed.save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path) if all(a.source for a in mixed.anchors) else None
    ids = range(len(mixed.stitches))
    with torch.no_grad():
        shared = dict(all_logits(mixed, X[:2], ids))
        for stitch in ids:
            expected = logits(mixed, stitch, X[:2])
            assert torch.equal(shared[stitch], expected)
            assert torch.equal(mixed.extract(stitch)(X[:2]), expected)
            if loaded is not None:
                assert torch.equal(loaded(X[:2], stitch=stitch), expected)
    if loaded is not None:
        assert loaded.statistics.groups == mixed.statistics.groups
        assert (loaded.statistics.samples, loaded.statistics.held_out) == (24, 7)
        assert [r.recalibrated for r in loaded.records] == [r.recalibrated for r in mixed.records]
    assert torch.equal(logits(mixed, 3, X), logits(exact, 3, X))
    assert torch.equal(logits(mixed, 1, X), logits(plain, 1, X))


def test_a_mixture_lies_between_the_anchors_statistics_and_the_stitches_own(mixed, plain, exact):
    old = plain.anchor(0).model.bn1
    new, between = (net.statistics.tables(4)[0][net.anchor(0).model.bn1]['running_mean'] for net in (exact, mixed))
    torch.testing.assert_close(between, 0.7 * old.running_mean + 0.3 * new)


@pytest.mark.slow
def test_all_ranks_choose_the_same(plain, exact):
    classes = logits(exact, 4, X).argmax(1)
    alone = copy.deepcopy(plain)
    snnet.recalibrate(alone, [(MEASURED, classes[::2])], samples=24, held_out=[(HELD_OUT, classes[1::2])])
    barrier, shares = threading.Barrier(2, timeout=60), [None, None]
    nets = [copy.deepcopy(plain), copy.deepcopy(plain)]

    def rank(number):
        def all_reduce(tensor):
            shares[number] = tensor.clone()
            barrier.wait()
            tensor.copy_(shares[0] + shares[1])
            barrier.wait()

        part = slice(number, None, 2)
        snnet.recalibrate(
            nets[number],
            [(MEASURED[part], classes[::2][part])],
            samples=12,
            held_out=[(HELD_OUT[part], classes[1::2][part])],
            all_reduce=all_reduce,
        )

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nets[0].statistics.shares == nets[1].statistics.shares == alone.statistics.shares


@pytest.mark.slow  # seconds
def test_the_log_says_what_was_kept_and_why_and_old_accuracies_go(plain, exact, caplog):
    net = copy.deepcopy(plain)
    net.records = [snnet.Record(r.stitch, r.legs, top1=50.0, n=10, anchor=r.anchor) for r in net.records]
    with caplog.at_level(logging.INFO):
        snnet.recalibrate(net, [(X, logits(exact, 4, X).argmax(1))], samples=48)
    assert 'recalibrated on 24 images, judged on 24 others' in caplog.text
    changed = {stitch for stitch, share in net.statistics.shares.items() if share}
    assert f'{len(changed)} of {len(net.stitches)} stitches change' in caplog.text
    assert {record.stitch for record in net.records if record.top1 is None} == changed
    net.train()
    assert {record.recalibrated for record in net.records} == {None}


@pytest.mark.slow  # seconds: all shares on all images
@pytest.mark.parametrize('how', ['random', 'exact'])
def test_shares_that_were_given_up_early_would_not_have_won(plain, exact, how):
    classes = logits(exact, 4, X).argmax(1) if how == 'exact' else torch.arange(48) % 7
    net = copy.deepcopy(plain)
    snnet.recalibrate(net, [(MEASURED, classes[::2])], samples=24, held_out=[(HELD_OUT, classes[1::2])])
    shares = [0.1, 0.3, 0.5, 1.0]
    gains = {stitch: [] for stitch in net.statistics.shares}
    for share in shares:
        other = copy.deepcopy(plain)
        snnet.recalibrate(other, [MEASURED], samples=24, shares=[share])
        for stitch, found in gains.items():
            right, before = (logits(n, stitch, HELD_OUT).argmax(1) == classes[1::2] for n in (other, plain))
            found.append(right.double() - before.double())
    for stitch, found in gains.items():
        errors = 2 if plain.records[stitch].anchor else 1
        margins = [float(gain.sum() - errors * gain.square().sum().sqrt()) for gain in found]
        assert net.statistics.shares[stitch] == (shares[margins.index(max(margins))] if max(margins) > 0 else 0)
    if how == 'exact':
        assert len(set(net.statistics.shares.values())) > 1


def test_stitches_that_are_right_already_are_not_measured(plain, monkeypatch):
    asked = []
    monkeypatch.setattr(StatisticsMeter, 'measure', lambda self, tree, chunks: asked.append(list(tree.walk())) or {})
    net = copy.deepcopy(plain)
    classes = logits(plain, 4, X).argmax(1)
    snnet.recalibrate(net, [(X[:8], classes[:8])], samples=8, stitches=[4])
    assert asked == [[]]


def test_runs_of_ids_are_written_as_ranges():
    assert _ranges([0, 1, 2, 5, 7, 8]) == '0-2,5,7-8'
    assert _ranges([3]) == '3'
