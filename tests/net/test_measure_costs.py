from __future__ import annotations

import math

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import snnet
from snnet.anchors.flops import part_flops, trace, uncounted
from tests.helpers.families import every_net, images, shared_net

PRODUCTS = {'conv', 'linear', 'matmul', 'addmm', 'bmm', 'mm', 'einsum', 'scaled_dot_product_attention'}


@pytest.mark.slow_for('swin', 'levit', 'maps to windows')
@every_net
def test_flops_summed_from_parts_equal_a_whole_trace_of_every_stitch(name):
    net = shared_net(name)
    for record in net.records[:: 1 + len(net.records) // 6]:
        assert record.flops == trace(net.extract(record.stitch), net.input_size).total()


@pytest.mark.slow_for('levit', 'swin')
@every_net
def test_no_costly_operation_goes_uncounted(name):
    net = shared_net(name)
    for anchor in net.anchors:
        assert uncounted(trace(anchor, net.input_size)) == {}


@pytest.mark.quick('vit', 'three legs', 'two ways', 'official')
@every_net
def test_products_are_counted_as_torch_counts_them(name):
    net = shared_net(name)
    for i in (0, 1, len(net.stitches) - 1):
        module = net.extract(i)
        ours = sum(count for op, count in trace(module, net.input_size).by_operator().items() if op in PRODUCTS)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as theirs:  # torch 2.10 misses fused ones
            module(images(net.input_size[1], 1))
        assert 2 * ours == theirs.get_total_flops()


@pytest.mark.slow_for('swin')
@every_net
def test_parts_add_up_to_the_anchor(name):
    net = shared_net(name)
    for i in range(len(net.anchors)):
        assert part_flops(net.anchor(i)).whole == net.records[i].flops
        assert net.records[i].params == sum(p.numel() for p in net.anchor(i).parameters())


@every_net
def test_a_stitch_layer_counts_a_product_a_token(name):
    net = shared_net(name)
    for layer in net.stitch_layers:
        traced = trace(layer, tuple(feature_shape(layer.front)[1:]))
        assert layer.flops == traced.total() == layer.front.tokens * math.prod(layer.weight.shape)


def feature_shape(boundary):
    channels, grid = boundary.channels, boundary.grid
    return {'NCHW': (1, channels, *grid), 'NHWC': (1, *grid, channels), 'NLC': (1, boundary.tokens, channels)}[
        boundary.layout
    ]


def test_costs_do_not_depend_on_mode_autograd_or_the_weights():
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False)
    expected = list(net.records)
    net.train()
    for parameter in net.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)
    assert snnet.measure_costs(net).records == expected
    assert net.training
