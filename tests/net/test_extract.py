from __future__ import annotations

import pytest
import torch

from tests.helpers.families import every_net, family_net, images, shared_net, three_vits


@pytest.mark.quick('resnet')
@every_net
def test_extract_gives_the_same_output_with_its_own_parameters_only(name):
    net = shared_net(name)
    x = images(net.input_size[1])
    for i, record in enumerate(net.records):
        module = net.extract(i)
        with torch.no_grad():
            assert torch.equal(module(x), net(x, stitch=i))
        assert sum(p.numel() for p in module.parameters()) == record.params
        assert not {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.quick('vit')
@pytest.mark.parametrize('name', ['vit', 'levit', 'levit of convolutions', 'resnet'])
def test_extract_works_after_a_forward_pass_with_autograd_on(name):
    net = family_net(name)
    x = images(net.input_size[1])
    expected = net(x, stitch=2)
    assert torch.equal(net.extract(2)(x), expected)


@pytest.mark.slow_for('levit', 'maps to windows', 'swin')
@every_net
def test_parameters_that_take_part_are_those_that_get_a_gradient(name):
    net = shared_net(name)
    for i, record in enumerate(net.records):
        net.eval().zero_grad()
        net(images(net.input_size[1]), stitch=i).sum().backward()
        used = {key: p.numel() for key, p in net.named_parameters() if p.grad is not None}
        assert net.parameter_names(i) == set(used)
        assert record.params == sum(used.values())
    net.eval()


@pytest.mark.parametrize('mode', [True, False])
def test_extract_keeps_the_mode(mode):
    assert family_net('vit').train(mode).extract(4).training is mode


def test_an_extracted_stitch_is_not_changed_with_the_net():
    net = three_vits(nearest=False)
    module, x = net.extract(len(net.stitches) - 1), images(32)
    with torch.no_grad():
        before = module(x)
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(module(x), before)
    assert before.abs().sum() > 0


def test_an_extracted_stitch_loads_what_another_one_saved():
    first, second = (three_vits(nearest=False).extract(12) for _ in range(2))
    for parameter in second.parameters():
        parameter.data.zero_()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images(32)), second(images(32)))
