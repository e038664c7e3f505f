from __future__ import annotations

import threading

import pytest
import torch

import snnet
from snnet import SnnetError
from tests.helpers.families import family_net, images, three_vits


def layers_of(net):
    return torch.cat([p.detach().flatten() for p in net.stitch_layers.parameters()])


def initialized(net, batches, **options):
    fits = snnet.initialize(net, batches, **options)
    return layers_of(net), fits


@pytest.mark.quick('sizes1')
@pytest.mark.parametrize('sizes', [[24], [5, 19], [16, 8], [1] * 24])
def test_it_does_not_matter_how_images_are_batched(sizes):
    net, x = family_net('vit'), images(32, 24)
    expected, _ = initialized(net, [x], samples=24)
    actual, fits = initialized(net, x.split(sizes), samples=24)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert all(fit.rows % (24 * 17) == 0 for fit in fits)


@pytest.mark.quick('17')
@pytest.mark.parametrize('samples', [1, 7, 16, 17])
def test_exactly_so_many_images_are_used_as_were_asked_for(samples):
    net = family_net('vit of other depth')
    expected, _ = initialized(net, [images(32, 30)[:samples]], samples=samples)
    drawn = []

    def batches():
        for batch in images(32, 30).split(5):
            drawn.append(len(batch))
            yield batch

    actual, fits = initialized(net, batches(), samples=samples)
    joins = {(s.legs[0].stop, s.legs[1].start, *s.layers) for s in net.stitches[2:]}
    for fit in fits:
        assert fit.rows == samples * 17 * sum(layer == fit.layer for *_, layer in joins)
    assert sum(drawn) == 5 * -(-samples // 5), 'no batch is drawn that is not needed'
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_batches_may_come_with_labels():
    net, x = family_net('vit'), images(32, 8)
    expected, _ = initialized(net, [x], samples=8)
    assert torch.equal(initialized(net, [(x, torch.zeros(8))], samples=8)[0], expected)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('method', ['joint', 'mean'])
def test_ranks_that_add_their_sums_up_all_get_what_one_rank_gets(method):
    x = images(32, 20)
    expected, expected_fits = initialized(three_vits(), [x], samples=20, method=method)
    meeting, slots, found = threading.Barrier(2), [None, None], [None, None]
    nets = [three_vits(), three_vits()]

    def work(rank):
        def all_reduce(tensor):
            slots[rank] = tensor.clone()
            meeting.wait(60)
            tensor.copy_(slots[0] + slots[1])
            meeting.wait(60)

        part = [x[:13], x[13:]][rank]
        found[rank] = initialized(nets[rank], [part], samples=len(part), method=method, all_reduce=all_reduce)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layers, fits in found:
        torch.testing.assert_close(layers, expected, rtol=0, atol=1e-5)
        assert [fit.rows for fit in fits] == [fit.rows for fit in expected_fits]
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.quick('nan-0-small', 'inf-1-large')
@pytest.mark.parametrize(('which', 'name'), [(0, 'small'), (1, 'large')])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_features_that_are_not_finite_are_refused_naming_the_anchor_and_change_nothing(which, name, bad):
    net = family_net('vit')
    before = layers_of(net)
    net.anchor(which).model.blocks[0].mlp.fc2.bias.data[0] = bad
    with pytest.raises(SnnetError, match=f'{name} gives features that are not finite'):
        snnet.initialize(net, [images(32, 4)], samples=4)
    assert torch.equal(layers_of(net), before)


@pytest.mark.quick('1-vit', '0-vit')
@pytest.mark.parametrize('name', ['vit', 'resnet', 'swin', 'levit'])
@pytest.mark.parametrize('empty_batches', [0, 1])
def test_zero_images_are_refused(name, empty_batches):
    net = family_net(name)
    before = layers_of(net)
    with pytest.raises(SnnetError, match='no images'):
        snnet.initialize(net, [images(net.input_size[1], 0)] * empty_batches)
    assert torch.equal(layers_of(net), before)


@pytest.mark.parametrize('samples', [0, -3])
def test_asking_for_no_images_is_refused(samples):
    with pytest.raises(SnnetError, match=f'samples={samples}'):
        snnet.initialize(family_net('vit'), [images(32)], samples=samples)


def test_an_unknown_method_is_refused():
    with pytest.raises(SnnetError, match="joint or mean, not 'median'"):
        snnet.initialize(family_net('vit'), [images(32)], method='median')


def test_fewer_images_than_asked_for_are_used_with_a_warning(caplog):
    net = family_net('vit')
    expected, _ = initialized(net, [images(32, 6)], samples=6)
    assert 'images' not in caplog.text
    assert torch.equal(initialized(net, [images(32, 6)], samples=100)[0], expected)
    assert '6 images' in caplog.text
    assert '100 were asked for' in caplog.text


def test_images_of_another_size_than_the_net_is_made_for_are_said_once(caplog):
    net = family_net('resnet')
    height, width = net.input_size[1:]
    batches = [torch.randn(2, 3, height + 32, width + 32) for _ in range(2)]
    snnet.initialize(net, batches, samples=4)
    told = f'images of {height + 32}x{width + 32}, but the network was made for {height}x{width}'
    assert caplog.text.count(told) == 1


@pytest.mark.parametrize('mode', [True, False])
def test_every_module_keeps_its_mode_and_statistics_and_dropout_stay_out(mode):
    net = family_net('resnet')
    expected, _ = initialized(net, [images(64, 8)], samples=8)
    net.train(mode)
    net.anchor(0).model.layer2.train(not mode)
    modes = [module.training for module in net.modules()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    actual, _ = initialized(net, [images(64, 8)], samples=8)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))
    assert torch.equal(actual, expected)


def test_it_works_where_only_stitch_layers_train_and_leaves_no_gradient():
    net = family_net('vit')
    for parameter in net.anchors.parameters():
        parameter.requires_grad_(False)
    snnet.initialize(net, [images(32, 4)], samples=4)
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in net.stitch_layers.parameters())


def test_anchors_that_are_alike_are_stitched_without_loss():
    net = family_net('vit')
    twin = snnet.as_anchor(net.anchor(0).model, 'twin', input_size=(3, 32, 32))
    pair = snnet.create_stitchable_net([net.anchor(0), twin], pretrained=False, step=2).eval()
    straight = [i for i, s in enumerate(pair.stitches) if len(s.legs) == 2 and s.legs[0].stop == s.legs[1].start]
    alone = snnet.StitchableNet(list(pair.anchors), [snnet.Stitch(pair.stitches[i].legs, (0,)) for i in straight[:1]])
    fits = snnet.initialize(alone.eval(), [images(32, 24)], samples=24)
    assert fits[0].residual < 1e-10
    with torch.no_grad():
        torch.testing.assert_close(alone(images(32), stitch=0), twin(images(32)), rtol=1e-3, atol=1e-3)


def kaimed(seed):
    net = family_net('vit')
    snnet.kaiming(net, torch.Generator().manual_seed(seed))
    return net


def test_kaiming_is_drawn_from_the_generator_alone():
    first = layers_of(kaimed(1))
    torch.manual_seed(99)
    assert torch.equal(layers_of(kaimed(1)), first)
    assert not torch.equal(layers_of(kaimed(2)), first)


def test_kaiming_lies_within_torchs_default_bound():
    for layer in kaimed(1).stitch_layers:
        bound = layer.in_features**-0.5
        for values in (layer.weight, layer.bias):
            assert 0.7 * bound < values.abs().max() <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15)
