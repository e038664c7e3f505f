from __future__ import annotations

import timeit

import numpy as np
import pytest
import torch
from einops import rearrange

from snnet import UnknownStitch
from tests.helpers.families import cross_net, every_net, family_net, images, shared_net, three_vits


@pytest.fixture(scope='module')
def net():
    return three_vits(nearest=False)


@pytest.mark.slow_for('swin', 'maps to windows')
@every_net
def test_running_without_state_equals_running_the_active_stitch(name):
    net = shared_net(name)
    x, outputs = images(net.input_size[1]), []
    with torch.no_grad():
        for i in range(len(net.stitches)):
            outputs.append(net(x, stitch=i))
            with net.using(i):
                assert torch.equal(net(x), outputs[-1])
    assert len({tuple(y.flatten().tolist()) for y in outputs}) == len(outputs), 'two stitches do the same'


def matrix_product(layer, x):
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize('stitch', range(2, 12))
def test_a_vit_stitch_is_its_blocks_and_a_matrix_product(stitch):
    net = family_net('vit').double()
    front, end = (net.anchor(i).model for i in (0, 1))
    first, second = net.stitches[stitch].legs
    with torch.no_grad():
        x = front._pos_embed(front.patch_embed(images(32).double()))
        for block in front.blocks[: first.stop]:
            x = block(x)
        x = matrix_product(net.layer(net.stitches[stitch].layers[0]), x)
        for block in end.blocks[second.start :]:
            x = block(x)
        expected = end.head(end.norm(x)[:, 0])
        torch.testing.assert_close(net(images(32).double(), stitch=stitch), expected, rtol=0, atol=1e-12)


def test_the_published_ending_of_a_vit_stitch_leaves_out_the_final_norm():
    net = family_net('vit', official=True)
    normed = family_net('vit')
    for one in (net, normed):
        one.anchor(1).model.norm.weight.data.fill_(3.0)
    with torch.no_grad():
        anchor, stitch = (net(images(32), stitch=i) - normed(images(32), stitch=i) for i in (1, 5))
        normed.anchor(1).model.norm = torch.nn.Identity()
        assert torch.equal(anchor, torch.zeros_like(anchor))
        assert stitch.abs().max() > 1e-3
        assert torch.equal(net(images(32), stitch=5), normed(images(32), stitch=5))


@pytest.mark.slow  # seconds
def test_a_cnn_to_swin_stitch_is_stages_a_matrix_product_and_windows():
    net = cross_net().double()
    cnn, swin = (net.anchor(name).model for name in ('cnn', 'swin'))
    stitch = next(s for s in net.stitches[2:] if net.anchor('cnn').boundaries[s.legs[0].stop].grid == (8, 8))
    assert (stitch.legs[0].stop, stitch.legs[1].start) == (3, 4)
    with torch.no_grad():
        x = images(64).double()
        y = cnn.layer2[0](cnn.layer1(cnn.maxpool(cnn.act1(cnn.bn1(cnn.conv1(x))))))
        y = matrix_product(net.layer(stitch.layers[0]), rearrange(y, 'n c h w -> n h w c'))
        y = swin.layers[3](swin.layers[2](swin.layers[1].blocks[1](y)))
        expected = swin.head.fc(swin.norm(y).mean((1, 2)))
        actual = net(x, stitch=net.stitches.index(stitch))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_using_restores_the_stitch_also_after_an_exception(net):
    net.set_stitch(3)
    with net.using(7) as same:
        assert (same, net.active) == (net, 7)
        with net.using(1):
            assert net.active == 1
        assert net.active == 7
    with pytest.raises(KeyError), net.using(5):
        raise KeyError
    assert net.active == 3
    with pytest.raises(UnknownStitch), net.using(10_000):
        pass
    assert net.active == 3


@pytest.mark.parametrize('bad', [-1, 'n', True, '3', 1.0, torch.tensor(1), None, np.float64(1), [1]])
def test_an_id_that_is_none_is_a_typed_error_and_changes_nothing(net, bad):
    bad = len(net.stitches) if bad == 'n' else bad
    net.set_stitch(2)
    asks = [net.set_stitch, net.extract, net.parameter_names, lambda i: net.using(i).__enter__()]
    if bad is not None:
        asks.append(lambda i: net(images(32), stitch=i))
    for ask in asks:
        with pytest.raises(UnknownStitch, match=f'0 to {len(net.stitches) - 1}') as caught:
            ask(bad)
        assert isinstance(caught.value, IndexError)
    assert net.active == 2


def test_an_id_may_be_a_numpy_integer(net):
    net.set_stitch(np.int64(4))
    assert net.active == 4


def test_switching_takes_under_ten_microseconds(net):
    calls = 1000
    assert min(timeit.repeat(lambda: net.set_stitch(7), number=calls, repeat=20)) / calls < 10e-6


def test_switching_and_running_change_no_parameter_and_add_none(net):
    before = {key: (value.data_ptr(), value.clone()) for key, value in net.state_dict().items()}
    with torch.no_grad():
        for i in range(0, len(net.stitches), 4):
            net.set_stitch(i)
            net(images(32))
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(value.data_ptr() == before[key][0] for key, value in after.items())
    assert all(torch.equal(value, before[key][1]) for key, value in after.items())


def test_parameters_keep_the_names_of_the_wrapped_models(net):
    names = {f'anchors.{i}.model.{key}' for i in range(3) for key in net.anchor(i).model.state_dict()}
    layers = {f'stitch_layers.{i}.{key}' for i in range(len(net.stitch_layers)) for key in ('weight', 'bias')}
    assert set(net.state_dict()) == names | layers


def test_forward_runs_the_active_stitch_in_train_mode_too():
    net = family_net('vit').train()
    net.set_stitch(5)
    assert torch.equal(net(images(32)), net(images(32), stitch=5))
    net(images(32)).sum().backward()
    used = {key for key, p in net.named_parameters() if p.grad is not None}
    assert used == net.parameter_names(5)
