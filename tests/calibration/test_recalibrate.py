from __future__ import annotations

import copy
import io
import threading
from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnet
from snnet import SnnetError, UnknownStitch
from snnet.calibration import measure_statistics
from snnet.net.shared_prefixes import all_logits
from snnet.net.stitch_statistics import batch_norms
from tests.helpers.crowd import in_threads
from tests.helpers.families import _NETS, family_net, images

CNNS = ('resnet', 'resnet kin', 'levit', 'regnet z', 'maps to windows')
SAMPLES = images(64, 10, seed=3)


def outputs(net, ids=None):
    with torch.no_grad():
        return [net(images(64, 3), stitch=i) for i in (range(len(net.stitches)) if ids is None else ids)]


def all_equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope='module')
def nets():
    """Recalibrated nets by name, with their outputs before, made when first asked for."""

    @cache
    def recalibrated(name):
        net = _NETS[name]()
        before = outputs(net)
        snnet.recalibrate(net, SAMPLES.split(4), samples=10, shares=[1])
        return net, before

    return recalibrated


@pytest.mark.quick('levit', 'resnet')
@pytest.mark.parametrize('name', CNNS)
def test_every_batch_norm_of_every_stitch_sees_the_mean_and_variance_that_it_normalizes_with(nets, name):
    net, _ = nets(name)
    seen = {}
    norms = batch_norms(net)
    hooks = [
        module.register_forward_pre_hook(lambda m, x: seen.update({m: (x[0], m.running_mean, m.running_var)}))
        for module in norms.values()
    ]
    with torch.no_grad():
        for i in range(len(net.stitches)):
            seen.clear()
            net(SAMPLES, stitch=i)
            assert seen or name == 'maps to windows'
            for x, mean, variance in seen.values():
                exact = torch.var_mean(x.double(), [0, *range(2, x.ndim)])
                torch.testing.assert_close((variance, mean), tuple(v.float() for v in exact), rtol=1e-4, atol=1e-5)
    for hook in hooks:
        hook.remove()


@pytest.mark.quick('resnet', 'levit')
@pytest.mark.parametrize('name', CNNS)
def test_statistics_change_every_stitch_with_batch_norm(nets, name):
    net, before = nets(name)
    same = [i for i, (a, b) in enumerate(zip(before, outputs(net), strict=True)) if torch.allclose(a, b, atol=1e-3)]
    assert same == ([1] if name == 'maps to windows' else [])  # the Swin alone


@pytest.mark.quick('resnet', 'levit')
@pytest.mark.parametrize('name', CNNS)
def test_shared_parts_extracted_stitches_and_copies_give_the_same_bits(nets, name):
    net, _ = nets(name)
    expected = outputs(net)
    ids = range(len(net.stitches))
    for suffix_batch in (0, 100):
        with torch.no_grad():
            shared = dict(all_logits(net, images(64, 3), ids, suffix_batch))
        assert all_equal([shared[i] for i in ids], expected)
    with torch.no_grad():
        assert all_equal([net.extract(i)(images(64, 3)) for i in ids], expected)
    assert all_equal(outputs(copy.deepcopy(net)), expected)


def test_an_extracted_stitch_holds_ordinary_batch_norms_with_its_statistics(nets):
    net, _ = nets('resnet')
    module = net.extract(3)
    kinds = Counter(type(m) for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert set(kinds) == {nn.BatchNorm2d}
    first = module.anchors[0].model.bn1
    x = net.anchor(0).model.conv1(SAMPLES)
    torch.testing.assert_close(module.state_dict()['anchors.0.model.bn1.running_mean'], x.mean((0, 2, 3)))
    assert not torch.equal(first.running_mean, net.anchor(0).model.bn1.running_mean)


@pytest.mark.slow  # seconds
def test_the_split_into_batches_and_over_ranks_changes_nothing_but_rounding(nets):
    expected = nets('resnet')[0].statistics.values
    whole = _NETS['resnet']()
    snnet.recalibrate(whole, [(SAMPLES, torch.zeros(10))], samples=10, shares=[1])
    barrier, shares, failed = threading.Barrier(2, timeout=60), [None, None], []

    def rank(number, net):
        def all_reduce(tensor):
            shares[number] = tensor
            barrier.wait()
            total = shares[0] + shares[1]
            barrier.wait()
            tensor.copy_(total)

        try:
            snnet.recalibrate(net, SAMPLES[number::2].split(2), samples=5, all_reduce=all_reduce, shares=[1])
        except Exception as error:
            failed.append(error)
            barrier.abort()

    ranks = [_NETS['resnet'](), _NETS['resnet']()]
    threads = [threading.Thread(target=rank, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert ranks[0].statistics.digest() == ranks[1].statistics.digest()
    for net in (whole, ranks[0]):
        assert net.statistics.samples == 10
        assert net.statistics.values.keys() == expected.keys()
        for place, value in net.statistics.values.items():
            torch.testing.assert_close(value, expected[place], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # seconds
def test_features_that_do_not_fit_into_memory_together_give_the_same_but_rounding(nets, monkeypatch):
    monkeypatch.setattr(measure_statistics, '_AT_ONCE', 10 * 4 * 30_000)  # fewer than ten images in the first stages
    parts = Counter()
    chunked = measure_statistics.StatisticsMeter._run_in_chunks
    monkeypatch.setattr(
        measure_statistics.StatisticsMeter,
        '_run_in_chunks',
        lambda self, node, *rest: parts.update([node.part.kind]) or chunked(self, node, *rest),
    )
    net = _NETS['resnet']()
    snnet.recalibrate(net, SAMPLES.split(4), samples=10, shares=[1])
    assert parts
    assert len(net.statistics.values) > sum(parts.values()), 'others run together'
    for place, value in net.statistics.values.items():
        torch.testing.assert_close(value, nets('resnet')[0].statistics.values[place], rtol=1e-4, atol=1e-5)


def test_a_rank_without_images_ends_all_of_them(nets):
    with pytest.raises(SnnetError, match='on some process'):
        snnet.recalibrate(_NETS['resnet'](), SAMPLES.split(4), all_reduce=lambda tensor: tensor.add_(1))


def test_a_place_that_stitches_share_is_measured_once(nets):
    net, _ = nets('resnet')
    by_name = Counter(place.split('.', 2)[2] for place in net.statistics.values)
    front = [count for name, count in by_name.items() if name.startswith('anchors.0.')]
    assert set(front) == {1}, 'all fronts are the beginning of one anchor'
    ends = [stitch.legs[-1].start or 0 for stitch in net.stitches if stitch.legs[-1].anchor == 'large']
    line = net.anchor(1).line()
    for position, block in enumerate(line):
        names = {name for name, module in batch_norms(net).items() if module in set(block.modules())}
        assert {by_name[name] for name in names} == {sum(start <= position for start in ends)}


def test_some_stitches_only(nets):
    net, everything = _NETS['resnet'](), nets('resnet')[0]
    snnet.recalibrate(net, SAMPLES.split(4), samples=10, stitches=[4, 0, 4], shares=[1])
    expected, before = outputs(everything), nets('resnet')[1]
    mixed = [expected[i] if i in (0, 4) else before[i] for i in range(len(expected))]
    for suffix_batch in (0, 100):
        with torch.no_grad():
            shared = dict(all_logits(net, images(64, 3), range(len(mixed)), suffix_batch))
        torch.testing.assert_close([shared[i] for i in range(len(mixed))], mixed, rtol=1e-4, atol=1e-4)
    assert all_equal(outputs(net), [net.extract(i).eval()(images(64, 3)) for i in range(len(mixed))])


@pytest.mark.slow  # seconds
def test_sixteen_threads_with_different_stitches_get_what_one_thread_gets(nets):
    net, _ = nets('resnet')
    expected = outputs(net)

    def work(offset):
        ids = [(offset * 3 + turn) % len(expected) for turn in range(4)]
        return all_equal(outputs(net, ids), [expected[i] for i in ids])

    assert all(in_threads(work))


def train_mode(net):
    net.train()


def other_weights(module):
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith('statistics.')}
    return {name: 1.01 * tensor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load(net):
    net.load_state_dict(other_weights(net))


def load_a_block(net):
    block = net.anchor(1).model.layer1
    block.load_state_dict(other_weights(block))


def bypass_the_counters(net):
    for parameter in net.parameters():
        parameter.data.mul_(1.01)


def initialize(net):
    snnet.initialize(net, [SAMPLES], samples=10)


def step(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    F.cross_entropy(net(SAMPLES, stitch=4), torch.zeros(10, dtype=torch.long)).backward()
    optimizer.step()


@pytest.mark.parametrize('change', [train_mode, load, load_a_block, initialize, step, bypass_the_counters])
def test_statistics_are_never_used_with_other_weights(nets, tmp_path, change, caplog):
    net = copy.deepcopy(nets('resnet')[0])
    assert net.statistics is not None
    change(net)
    net.eval()
    assert net.statistics is None
    plain = copy.deepcopy(nets('resnet')[0])
    plain.set_statistics(None)
    plain.load_state_dict(net.state_dict())
    assert all_equal(outputs(net, [0, 4]), outputs(plain, [0, 4]))
    assert net.statistics is None
    assert 'recalibrate' in caplog.text
    assert {type(m) for m in batch_norms(net).values()} == {type(m) for m in batch_norms(plain).values()}
    net.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['README.md', 'config.json', 'model.safetensors']


def test_a_copy_of_a_net_whose_weights_have_changed_has_no_statistics(nets):
    net = copy.deepcopy(nets('resnet')[0])
    with torch.no_grad():
        net.layer(0).bias.add_(1)
    assert copy.deepcopy(net).statistics is None


def test_parameters_and_buffers_keep_their_names_and_the_anchors_own_statistics(nets):
    net, plain = nets('resnet')[0], _NETS['resnet']()
    state = net.state_dict()
    assert list(state)[: len(plain.state_dict())] == list(plain.state_dict())
    assert all(name.startswith('statistics.') for name in list(state)[len(plain.state_dict()) :])
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    assert dict(net.named_buffers()).keys() == dict(plain.named_buffers()).keys()
    assert repr(net) == repr(plain)


def test_statistics_move_with_the_net(nets):
    net = copy.deepcopy(nets('resnet')[0]).double()
    assert {value.dtype for value in net.statistics.values.values()} == {torch.float64}
    with torch.no_grad():
        torch.testing.assert_close(net(SAMPLES.double(), stitch=4).float(), nets('resnet')[0](SAMPLES, stitch=4))


def test_a_net_with_statistics_can_be_pickled(nets):
    file = io.BytesIO()
    torch.save(nets('resnet')[0], file)
    file.seek(0)
    assert all_equal(outputs(torch.load(file, weights_only=False), [4]), outputs(nets('resnet')[0], [4]))


def test_gradients_flow_in_eval_mode_and_training_afterwards_updates_the_anchors_own_statistics(nets):
    net = copy.deepcopy(nets('resnet')[0])
    net(SAMPLES, stitch=4).sum().backward()
    assert {key for key, p in net.named_parameters() if p.grad is not None} == net.parameter_names(4)
    norm = net.train().anchor(0).model.bn1
    before = norm.running_mean.clone()
    net(SAMPLES, stitch=4)
    assert not torch.equal(norm.running_mean, before)


def test_recalibrating_again_starts_from_the_weights_alone(nets):
    net = copy.deepcopy(nets('resnet')[0])
    told = []
    tell = lambda images, total: told.append((images, total))  # noqa: E731
    snnet.recalibrate(net, SAMPLES.split(4), samples=10, shares=[1], progress=tell)
    assert net.statistics.digest() == nets('resnet')[0].statistics.digest()
    assert {total for _, total in told} == {sum(images for images, _ in told)}


def test_what_cannot_be_recalibrated_is_refused_in_one_sentence(caplog):
    with pytest.raises(SnnetError, match='nothing to recalibrate: no anchor of small > large has BatchNorm'):
        snnet.recalibrate(family_net('vit'), [images(32)])
    net = _NETS['resnet']()
    with pytest.raises(SnnetError, match='at least one image'):
        snnet.recalibrate(net, [SAMPLES], samples=0)
    with pytest.raises(SnnetError, match='no images to recalibrate'):
        snnet.recalibrate(net, [])
    with pytest.raises(SnnetError, match='left to judge the statistics by: at least two images'):
        snnet.recalibrate(net, [SAMPLES[:1]], samples=1)
    for shares in ([], [0, 1.5], [-0.1]):
        with pytest.raises(SnnetError, match='shares are one or more numbers from 0 to 1'):
            snnet.recalibrate(net, [SAMPLES], shares=shares)
    with pytest.raises(UnknownStitch):
        snnet.recalibrate(net, [SAMPLES], stitches=[0, 99])
    with pytest.raises(SnnetError, match=r'anchors\.0\.model\.bn1 gets features that are not finite.* in stitch 0'):
        snnet.recalibrate(net, [torch.full_like(SAMPLES, float('nan'))], shares=[1])
    with pytest.raises(SnnetError, match=r'the logits of stitch 0 \(small.*\) are not finite'):
        snnet.recalibrate(net, [torch.full_like(SAMPLES, float('nan'))])
    assert net.statistics is None
    assert set(map(type, batch_norms(net).values())) == {nn.BatchNorm2d}
    snnet.recalibrate(net, [SAMPLES], samples=11, stitches=[0])
    assert 'recalibrating with all 10 images there are (11 were asked for)' in caplog.text


@pytest.mark.slow  # seconds
def test_compiled_blocks_follow_the_statistics_of_the_stitch(nets):
    net = copy.deepcopy(nets('resnet')[0])
    ids = [1, 3, 5, 6]  # all end in the same block
    expected = outputs(net, ids)
    net.anchor(1).line()[-1].compile(backend='eager')
    assert all_equal(outputs(net, ids), expected)
    assert all_equal(outputs(net, ids[::-1]), expected[::-1])
