from __future__ import annotations

import random

import pytest
import torch

import snnet
from snnet.net.cuda_graphs import GraphedStitches
from snnet.net.shared_prefixes import all_logits
from tests.gpu.nets import moved, near
from tests.helpers.crowd import in_threads
from tests.helpers.families import images, shared_net

pytestmark = pytest.mark.gpu
FAMILIES = ['vit', 'swin', 'resnet', 'levit', 'convnext', 'three legs', 'maps to windows']


@pytest.mark.parametrize('name', FAMILIES)
def test_every_stitch_gives_what_it_gives_on_the_cpu(name, device):
    there = moved(name, device)
    net, x = shared_net(name), images(there.input_size[1], 3)
    with torch.inference_mode():
        pairs = [(there(x.to(device), stitch=i), net(x, stitch=i)) for i in range(len(net.stitches))]
    assert [i for i, pair in enumerate(pairs) if not near(*pair)] == []


@pytest.mark.parametrize('name', FAMILIES)
def test_shared_parts_and_merged_suffixes_give_what_single_calls_give(name, device):
    net = moved(name, device)
    x = images(net.input_size[1], 3).to(device)
    ids = range(len(net.stitches))
    with torch.inference_mode():
        for most in (0, 12):
            found = dict(all_logits(net, x, ids, most))
            assert [i for i in ids if not near(found[i], net(x, stitch=i))] == []


@pytest.mark.slow_for('resnet')
@pytest.mark.parametrize('name', ['vit', 'resnet', 'levit'])
def test_sixteen_threads_with_different_stitches_get_what_one_thread_gets(name, device):
    net = moved(name, device)
    x = images(net.input_size[1], 3).to(device)
    with torch.inference_mode():
        wanted = [net(x, stitch=i) for i in range(len(net.stitches))]

    @torch.inference_mode()
    def work(offset):
        ids = [(offset * 7 + turn) % len(wanted) for turn in range(6)]
        return [(i, net(x, stitch=i).cpu()) for i in ids]

    assert [i for pairs in in_threads(work) for i, logits in pairs if not near(logits, wanted[i])] == []


def test_threads_on_streams_of_their_own_get_what_one_thread_gets(gpu):
    net = moved('vit', gpu)
    x = images(32, 8).to(gpu)
    with torch.inference_mode():
        wanted = [net(x, stitch=i) for i in range(len(net.stitches))]
    torch.cuda.synchronize()

    @torch.inference_mode()
    def work(offset):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = [(i, net(x, stitch=i)) for i in range(offset % 3, len(wanted), 3)]
        stream.synchronize()
        return [(i, logits.cpu()) for i, logits in found]

    assert [i for pairs in in_threads(work) for i, logits in pairs if not near(logits, wanted[i])] == []


@pytest.mark.parametrize('name', ['vit', 'swin', 'resnet', 'levit', 'convnext'])
def test_graphs_give_what_plain_calls_give_in_any_order_and_for_smaller_batches(name, gpu):
    net = moved(name, gpu)
    x = images(net.input_size[1], 4).to(gpu)
    graphs = GraphedStitches(net, torch.zeros_like(x), quiet=True)  # what it gave in the capture must not remain
    ids = list(range(len(net.stitches)))
    with torch.inference_mode():
        wanted = [net(x, stitch=i) for i in ids]
    for turn in range(3):
        random.Random(turn).shuffle(ids)
        found = [(i, graphs(x[: 1 + (i + turn) % 4], i)) for i in ids]
        assert [i for i, logits in found if not near(logits, wanted[i][: len(logits)])] == []


def test_graphs_take_weights_that_change_in_place(gpu):
    net = moved('vit', gpu)
    x = images(32, 4).to(gpu)
    graphs = GraphedStitches(net, torch.zeros_like(x), [3], quiet=True)
    before = graphs(x, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    with torch.inference_mode():
        wanted = net(x, stitch=3)
    assert near(graphs(x, 3), wanted)
    assert not near(before, wanted)


def test_graphs_captured_under_autocast_cast_the_weights_of_today(gpu):
    net = moved('vit', gpu)
    x = images(32, 4).to(gpu)
    with torch.autocast('cuda', torch.bfloat16):
        with torch.inference_mode():
            net(x, stitch=3)  # leaves weights in autocast's cache
        graphs = GraphedStitches(net, torch.zeros_like(x), [3], quiet=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    with torch.inference_mode(), torch.autocast('cuda', torch.bfloat16):
        wanted = net(x, stitch=3)
    found = graphs(x, 3)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(found.cpu(), wanted.cpu())


@pytest.mark.parametrize('name', ['vit', 'resnet', 'levit'])
def test_graphs_give_what_plain_calls_give_from_many_threads_on_streams_of_their_own(name, gpu):
    net = moved(name, gpu)
    x = images(net.input_size[1], 4).to(gpu)
    graphs = GraphedStitches(net, torch.zeros_like(x), quiet=True)  # what it gave in the capture must not remain
    with torch.inference_mode():
        wanted = [net(x, stitch=i) for i in range(len(net.stitches))]
    torch.cuda.synchronize()

    def work(offset):
        found = []
        stream = torch.cuda.Stream() if offset % 2 else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            for turn in range(8):
                stitch, count = (offset + turn) % len(wanted), 1 + (offset + turn) % 4
                found.append((stitch, graphs(x[:count], stitch)))
        stream.synchronize()
        return [(stitch, logits.cpu()) for stitch, logits in found]

    pairs = [pair for pairs in in_threads(work) for pair in pairs]
    assert [i for i, logits in pairs if not near(logits, wanted[i][: len(logits)])] == []


def test_a_thousand_switches_leave_no_memory_behind(gpu, true_memory):
    net = moved('vit', gpu)
    x = images(32, 4).to(gpu)
    graphs = GraphedStitches(net, x, quiet=True)
    ids = [random.Random(0).randrange(len(net.stitches)) for _ in range(1000)]

    def switch(ids):
        with torch.inference_mode():
            for i in ids:
                net.set_stitch(i)
                net(x)
                graphs(x, i)

    switch(range(len(net.stitches)))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    switch(ids)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_a_net_that_was_saved_on_the_device_is_loaded_with_the_same_bits(device, tmp_path):
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32).to(device)
    net.save_pretrained(tmp_path)
    loaded = snnet.StitchableNet.from_pretrained(tmp_path)
    pairs = zip(net.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(a.cpu(), b) for a, b in pairs)
