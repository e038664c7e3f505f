"""Stitches learn to answer as the largest anchor does, and nothing else of the net changes."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import snnet
from snnet import SnnetError, UnknownStitch
from snnet.calibration.adapt import _own_count, _ways, adaptable
from snnet.calibration.adaptation import Adaptation, AdaptedStitch
from snnet.calibration.agreement import Agreement, compare
from snnet.calibration.fit_stitch import StitchFit
from snnet.net.own_parameters import names_behind
from tests.helpers.families import _NETS, family_net, images

IMAGES = images(32, 48, seed=5)
JUDGES = IMAGES[3::4]


def adapted(net, **options):
    return snnet.adapt(net, [IMAGES], **{'steps': 6, 'batch_size': 12, 'blocks': 0, 'quiet': True, **options})


def divergence(net, stitch, x=JUDGES):
    with torch.no_grad():
        found, wanted = (net(x, stitch=i).double().log_softmax(1) for i in (stitch, len(net.anchors) - 1))
    return float(F.kl_div(found, wanted, reduction='batchmean', log_target=True))


@pytest.fixture(scope='module')
def vit():
    net = family_net('vit')
    return net, adapted(net)


@pytest.fixture(scope='module')
def plain():
    return family_net('vit')


@pytest.mark.slow  # a few seconds
def test_no_anchor_changes_by_a_bit_and_what_the_net_holds_stays(vit, plain):
    net, _ = vit
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    with torch.no_grad():
        for i in range(len(net.anchors)):
            assert torch.equal(net(IMAGES, stitch=i), plain(IMAGES, stitch=i))


def test_stitches_come_closer_to_the_largest_anchor_on_images_that_did_not_fit_them(vit, plain):
    net, done = vit
    assert [row.stitch for row in done.stitches] == list(range(len(net.anchors), len(net.stitches)))
    assert sum(row.kept for row in done.stitches) > len(done.stitches) / 2
    for row in done.stitches:
        assert row.before.divergence == pytest.approx(divergence(plain, row.stitch), rel=1e-3)
        assert row.after.divergence == pytest.approx(divergence(net, row.stitch), rel=1e-3)
        assert row.kept == (row.after.divergence < row.before.divergence) == (row.stitch in net.own_parameters.stitches)
        assert row.own == net.own_parameters.count(row.stitch)
    assert done.own == sum(row.own for row in done.stitches)


def test_with_several_labels_the_divergence_is_that_of_bernoulli_distributions():
    found, wanted = 4 * torch.randn(2, 5, 3, dtype=torch.float64)
    right, apart = compare(found, wanted, several_labels=True)
    given, aim = (torch.distributions.Bernoulli(logits=z) for z in (found, wanted))
    torch.testing.assert_close(apart, torch.distributions.kl_divergence(aim, given).sum(1))
    torch.testing.assert_close(right, aim.log_prob((found > 0).double()).sum(1).exp())
    sure = compare(wanted, 1000 * wanted.sign(), several_labels=True)[0]
    assert sure.tolist() == [1.0] * 5


def test_the_expected_accuracy_is_that_with_labels_drawn_from_the_largest_anchor():
    wanted, found = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, draws = found.expand(4, 3), torch.Generator().manual_seed(1)
    labels = torch.multinomial(wanted.softmax(1), 20_000, replacement=True, generator=draws)
    hits = (labels == found.argmax(1, keepdim=True)).double().mean(1)
    error = 5 * 0.5 / 20_000**0.5  # five standard errors
    torch.testing.assert_close(compare(found, wanted)[0], hits, rtol=0, atol=error)


def test_a_stitch_is_worth_having_where_more_is_expected_than_of_mixing():
    row = AdaptedStitch(3, 'a[:1] > b[1:]', 10, Agreement(50, 1.0), Agreement(60, 0.9), Agreement(55, 0.5))
    assert row.is_worth_having
    assert not replace(row, after=row.before).is_worth_having
    assert not replace(row, mixed=Agreement(math.nan, math.nan)).is_worth_having  # dearer than the largest anchor


def test_with_several_labels_stitches_adapt_to_each_class_by_itself():
    net = family_net('vit')
    net.several_labels = True
    done = adapted(net, stitches=[3], steps=4)
    (row,) = done.stitches
    assert row.kept
    with torch.no_grad():
        logits, answers = net(JUDGES, stitch=3), net(JUDGES, stitch=len(net.anchors) - 1)
    found = compare(logits, answers, several_labels=True).mean(1)
    assert [row.after.expected / 100, row.after.divergence] == pytest.approx(found.tolist(), rel=1e-3)


def test_a_stitch_gets_its_layer_and_what_has_a_single_axis_behind_the_join(vit):
    net, _ = vit
    for stitch, values in net.own_parameters.values.items():
        behind = frozenset().union(*names_behind(net, stitch))
        held = dict(net.named_parameters())
        assert values.keys() == {n for n in behind if held[n].ndim < 2 or n.startswith('stitch_layers')}


def test_blocks_add_the_whole_weights_behind_the_join(plain):
    stitch = next(i for i, s in enumerate(plain.stitches) if s.legs[-1].start == 2 and len(s.legs) == 2)
    few, more = (StitchFit(plain, stitch, blocks).parameters.keys() for blocks in (0, 1))
    weights = {
        name for name in plain.parameter_names(stitch) if '.1.model.blocks.2.' in name and name.endswith('weight')
    }
    assert more - few == {name for name in weights if plain.get_parameter(name).ndim > 1}


@pytest.mark.slow  # seconds
def test_images_that_judge_choose_between_scales_and_whole_weights(plain):
    by_way, ids = {}, [3, 4, 5]
    assert _ways(plain, ids, None, 0.6) == (0, 1)
    for blocks in (0, 1, None):
        net = copy.deepcopy(plain)
        done = adapted(net, blocks=blocks, stitches=ids, storage=0.6)
        by_way[blocks] = {row.stitch: (row, net.own_parameters.values.get(row.stitch, {})) for row in done.stitches}
    for stitch, (row, values) in by_way[None].items():
        best, chosen = min((by_way[blocks][stitch] for blocks in (0, 1)), key=lambda found: found[0].after.divergence)
        assert row == best
        assert values.keys() == chosen.keys()
        assert all(torch.equal(value, chosen[name]) for name, value in values.items())
    assert any(row.own > by_way[0][stitch][0].own for stitch, (row, _) in by_way[None].items())


def test_as_many_whole_blocks_are_tried_as_storage_allows(plain):
    held = sum(parameter.numel() for parameter in plain.parameters())
    ids = adaptable(plain, blocks=0)
    for blocks in (1, 2):
        own = _own_count(plain, ids, blocks)
        assert _ways(plain, ids, None, own / held) == (0, blocks)
        assert _ways(plain, ids, None, (own - 1) / held) == tuple(range(blocks))


@pytest.mark.slow  # seconds
def test_a_stitch_that_gets_worse_stays_as_it_was(plain):
    net = copy.deepcopy(plain)
    done = adapted(net, lr=100.0)
    assert not any(row.kept for row in done.stitches if not row.after.divergence < row.before.divergence)
    for row in done.stitches:
        if not row.kept:
            assert torch.equal(net(JUDGES, stitch=row.stitch), plain(JUDGES, stitch=row.stitch))
    assert not all(row.kept for row in done.stitches)


@pytest.mark.slow  # a few seconds
def test_an_interrupted_call_goes_on_bit_for_bit(vit, plain, tmp_path, monkeypatch):
    net, _ = vit
    fit, calls = StitchFit.fit, []

    def stopped(self, *args):
        calls.append(self.stitch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        fit(self, *args)

    again = copy.deepcopy(plain)
    monkeypatch.setattr(StitchFit, 'fit', stopped)
    with pytest.raises(KeyboardInterrupt):
        adapted(again, folder=tmp_path)
    assert again.own_parameters is None
    monkeypatch.setattr(StitchFit, 'fit', lambda self, *args: (calls.append(self.stitch), fit(self, *args)))
    adapted(again, folder=tmp_path)
    assert sorted(calls) == sorted([*range(2, len(net.stitches)), calls[2]])  # the one that was stopped comes twice
    assert again.own_parameters.digest() == net.own_parameters.digest()
    with pytest.raises(SnnetError, match='adapted with another net, other images or other settings'):
        adapted(copy.deepcopy(plain), folder=tmp_path, lr=1e-4)


def test_features_that_are_not_kept_give_the_same_stitch_up_to_rounding(vit, plain):
    net, _ = vit
    again, stitch = copy.deepcopy(plain), net.own_parameters.stitches[0]
    adapted(again, stitches=[stitch], cache_gb=1e-9)
    for name, value in net.own_parameters.values[stitch].items():
        torch.testing.assert_close(again.own_parameters.values[stitch][name], value, rtol=1e-2, atol=1e-3)


def test_a_second_call_goes_on_from_the_first_and_other_stitches_keep_what_they_have(vit):
    net = copy.deepcopy(vit[0])
    first = net.own_parameters
    stitch = first.stitches[0]
    done = adapted(net, stitches=[stitch], seed=1)
    assert done.stitches[0].before == next(row.after for row in vit[1].stitches if row.stitch == stitch)
    for other in first.stitches[1:]:
        assert all(torch.equal(net.own_parameters.values[other][n], v) for n, v in first.values[other].items())


def test_minutes_become_steps_that_a_resumed_call_takes_over(plain, tmp_path):
    first, second = copy.deepcopy(plain), copy.deepcopy(plain)
    options = {'steps': None, 'minutes': 0.005, 'stitches': [2, 3], 'folder': tmp_path}
    done = adapted(first, **options)
    assert done.steps >= 1
    assert adapted(second, **options).steps == done.steps
    assert (first.own_parameters is None) == (second.own_parameters is None)


def test_minutes_count_the_front_where_its_features_are_not_kept(plain, monkeypatch):
    front = StitchFit.front

    def slow_front(self, x):
        time.sleep(0.1)
        return front(self, x)

    monkeypatch.setattr(StitchFit, 'front', slow_front)
    options = {'steps': None, 'minutes': 0.01, 'stitches': [2], 'blends': 0}  # 0.6 seconds
    kept, not_kept = (adapted(copy.deepcopy(plain), cache_gb=cache, **options).steps for cache in (1.0, 1e-9))
    assert not_kept < 0.6 / 0.1 <= kept


@pytest.mark.slow  # seconds
def test_batch_norms_keep_their_statistics_and_get_scales_of_their_own():
    net = _NETS['resnet']()
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    done = snnet.adapt(net, [images(64, 16)], steps=3, batch_size=8, stitches=[2, 3], lr=1e-3, quiet=True)
    assert any(row.kept for row in done.stitches)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in net.named_buffers())
    x = images(64, 3)
    for stitch, values in net.own_parameters.values.items():
        assert any('.bn' in name for name in values)
        with torch.no_grad():
            assert torch.equal(net.extract(stitch)(x), net(x, stitch=stitch))


def test_the_report_says_what_each_direction_is_expected_to_give():
    rows = [
        AdaptedStitch(2, 'a[:1] > b[1:]', 10, Agreement(50, 1), Agreement(61, 1), Agreement(60, 1)),
        AdaptedStitch(3, 'a[:2] > b[2:]', 20, Agreement(50, 1), Agreement(64, 1), Agreement(61, 1)),
        AdaptedStitch(4, 'b[:1] > a[1:]', 20, Agreement(50, 1), Agreement(60, 1), Agreement(61, 1)),
        AdaptedStitch(5, 'b[:2] > a[1:]', 99, Agreement(50, 1), Agreement(90, 1), Agreement(math.nan, 1)),
    ]
    done = Adaptation(rows, (6, 2), 1, 0, 100)
    assert done.gains == {('a', 'b'): 2.0, ('b', 'a'): -1.0}
    assert 'from b to a: -1.00 points of expected top-1 over mixing' in str(done)
    assert 'points of expected' not in str(Adaptation(rows[:2], (6, 2), 1, 0, 100))


def test_the_table_says_which_stitches_are_worth_having(vit):
    _, done = vit
    text = str(done)
    assert len(text.splitlines()) == len(done.stitches) + 2
    assert text.count('(not worth it)') == len(done.stitches) - len(done.worth_having)
    assert f'{len(done.worth_having)} of {len(done.stitches)} stitches are expected to be more accurate' in text


def test_without_steps_nothing_changes_and_the_report_says_how_close_stitches_come_now(vit, plain):
    done = adapted(plain, steps=0)
    assert plain.own_parameters is None
    assert not any(row.kept for row in done.stitches)
    for now, fitted in zip(done.stitches, vit[1].stitches, strict=True):
        assert now.before == now.after
        assert now.before.divergence == pytest.approx(fitted.before.divergence, rel=1e-5)
        assert now.mixed == fitted.mixed


def test_what_cannot_be_adapted_is_refused_in_one_sentence(plain, tmp_path):
    with pytest.raises(SnnetError, match=r'stitch 0 \(small\[:\]\) has no join'):
        adapted(plain, stitches=[0, 3])
    with pytest.raises(UnknownStitch):
        adapted(plain, stitches=[99])
    with pytest.raises(SnnetError, match='at least 8 images, some of which judge, not 7'):
        snnet.adapt(plain, [IMAGES[:7]], steps=1)
    with pytest.raises(SnnetError, match='lr is a positive finite number, not 0'):
        adapted(plain, lr=0)
    with pytest.raises(SnnetError, match='steps is an integer of at least 0, but 2.5 was given'):
        snnet.adapt(plain, [IMAGES], steps=2.5)
    with pytest.raises(SnnetError, match='samples is at least 1, but 0 was given'):
        snnet.adapt(plain, [IMAGES], steps=1, samples=0)
    with pytest.raises(SnnetError, match='images hold values that are not finite'):
        snnet.adapt(plain, [IMAGES * float('nan')], steps=1)
    with pytest.raises(SnnetError, match='takes images of 3 channels, not 1'):
        snnet.adapt(plain, [IMAGES[:, :1]], steps=1)
    with pytest.raises(SnnetError, match='cache_gb is a positive finite number, not -1'):
        snnet.adapt(plain, [IMAGES], steps=1, cache_gb=-1)
    (tmp_path / 'file').touch()
    with pytest.raises(SnnetError, match="finished stitches are kept in a folder, but '.*file' is a file"):
        snnet.adapt(plain, [IMAGES], steps=1, folder=tmp_path / 'file')
    with pytest.raises(SnnetError, match='has no classes: it is a net of embeddings'):
        snnet.adapt(
            snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=0), [IMAGES], steps=1
        )
    with pytest.raises(
        SnnetError, match='those of the net, and .* M .storage=0.01. are allowed: stitches= .* names fewer'
    ):
        adapted(plain, storage=0.01)
    assert plain.own_parameters is None
