from __future__ import annotations

import copy

import pytest
import torch

from snnet.errors import SnnetError, UnknownStitch
from snnet.net.cuda_graphs import GraphedStitches
from tests.helpers import pretend_gpu
from tests.helpers.families import images, shared_net
from tests.helpers.pretend_gpu import pretended_gpu


def test_graphs_take_new_images_and_smaller_batches_and_leave_earlier_results_alone():
    net, x = shared_net('vit'), images(32, 3)
    with torch.inference_mode():
        wanted = [net(x, stitch=i) for i in (0, 3)]
    with pretended_gpu() as device:
        moved = copy.deepcopy(net).to(device)
        graphs = GraphedStitches(moved, torch.zeros_like(x, device=device), [0, 3], quiet=True)
        found = [graphs(x.to(device), 3), graphs(x[:2].to(device), 0), graphs(x[1:].to(device), 3)]
        with pytest.raises(UnknownStitch, match='stitch 1 was not captured, only 0, 3'):
            graphs(x.to(device), 1)
        with pytest.raises(SnnetError, match='captured for up to'):
            graphs(torch.cat([x, x]).to(device), 0)
        found = [logits.cpu() for logits in found]
    for logits, expected in zip(found, (wanted[1], wanted[0][:2], wanted[1][1:]), strict=True):
        torch.testing.assert_close(logits, expected)


def test_graphs_are_refused_without_a_gpu():
    with pytest.raises(SnnetError, match='on a GPU in eval mode, but this is on cpu'):
        GraphedStitches(shared_net('vit'), images(32))


def test_no_stitch_has_the_host_wait_for_the_device():
    net, x = shared_net('vit'), images(32, 2)
    with pretended_gpu() as device, torch.inference_mode():
        moved, x = copy.deepcopy(net).to(device), x.to(device)
        pretend_gpu.log.clear()
        for i in range(len(moved.stitches)):
            moved(x, stitch=i)
        assert pretend_gpu.log == []


def test_a_pretended_gpu_is_as_strict_as_a_true_one():
    with pretended_gpu() as device:
        there = torch.ones(2, device=device)
        with pytest.raises(RuntimeError, match='Expected all tensors to be on the same device'):
            there + torch.ones(2)
        with pytest.raises(TypeError, match='numpy'):
            there.numpy()
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match='when stream is capturing'), torch.cuda.graph(graph):
            there.sum().item()
        assert there.sum().item() == 2
    assert not torch.zeros(1).is_cuda
