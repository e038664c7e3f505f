from __future__ import annotations

import pytest
import timm
import torch

from snnet.utils.skip_random_weights import SkipRandomWeights


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet', 'test_convnext', 'test_byobnet'])
def test_a_network_is_built_without_random_numbers_and_takes_all_its_weights(name):
    before = torch.random.get_rng_state()
    with SkipRandomWeights():
        bare = timm.create_model(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in bare.parameters())
    full = timm.create_model(name).eval()
    bare.load_state_dict(full.state_dict())
    x = torch.ones(1, *full.default_cfg['input_size'])
    with torch.inference_mode(), SkipRandomWeights():  # what is no parameter is computed as ever
        inside = bare.eval()(x)
    with torch.inference_mode():
        assert torch.equal(inside, full(x))


def test_on_the_meta_device_only_shapes_are_made():
    with torch.device('meta'), SkipRandomWeights():
        bare = timm.create_model('test_vit')
    full = timm.create_model('test_vit')
    assert {name: value.shape for name, value in bare.state_dict().items()} == {
        name: value.shape for name, value in full.state_dict().items()
    }
    assert all(value.is_meta for value in bare.state_dict().values())
