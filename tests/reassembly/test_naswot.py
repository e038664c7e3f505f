from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from timm.layers.activations import HardSwish, QuickGELU, Swish
from torch import nn

from snnet.errors import SnnetError
from snnet.reassembly.naswot import naswot_score
from tests.helpers.families import NETWORKS, images, shake


class Recorder(nn.Module):
    """A layer, an activation and a layer; keeps what the activation was fed."""

    def __init__(self, activation, units=300):
        super().__init__()
        self.first = nn.Linear(12, units)
        self.activation = activation
        self.last = nn.Linear(units, 3)

    def forward(self, x):
        before = self.first(x)
        self.before = before.clone()
        return self.last(self.activation(before))


def network(activation=None, units=300):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Recorder(activation or nn.ReLU(), units)


def rows(count=8, seed=0):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def kernel(values):
    """Units whose signs two images share, by counting."""
    codes = (values > 0).numpy()
    return np.array([[(a == b).sum() for b in codes] for a in codes], dtype=float)


@pytest.mark.parametrize(
    'activation',
    [
        nn.ReLU(),
        nn.ReLU(True),
        nn.GELU(),
        nn.SiLU(True),
        nn.Hardswish(),
        nn.ELU(),
        Swish(True),
        HardSwish(),
        QuickGELU(),
    ],
    ids=str,
)
def test_the_score_is_the_log_determinant_of_shared_codes(activation):
    model = network(activation)
    found = naswot_score(model, [rows()])
    sign, expected = np.linalg.slogdet(kernel(model.before.detach()))
    assert sign == 1
    assert found.plain == pytest.approx(expected, rel=1e-9)
    assert found.units == 300
    assert found.normalized == pytest.approx(np.linalg.slogdet(kernel(model.before.detach()) / 300)[1], rel=1e-9)


def test_batches_are_averaged():
    batches = [rows(seed=seed) for seed in range(3)]
    single = [naswot_score(network(), [batch]).plain for batch in batches]
    told = []
    assert naswot_score(network(), [(batch, None) for batch in batches], told.append).plain == pytest.approx(
        np.mean(single)
    )
    assert told == [8, 8, 8]


def test_only_the_plain_score_grows_with_the_number_of_units():
    small, large = (naswot_score(network(units=units), [rows(seed=i) for i in range(4)]) for units in (400, 4000))
    assert large.plain - small.plain == pytest.approx(8 * math.log(10), abs=1.5)
    assert large.normalized == pytest.approx(small.normalized, abs=1.5)


def test_an_image_that_occurs_twice_costs_much_and_stays_finite():
    once, twice = rows(), rows()
    twice[1] = twice[0]
    found = naswot_score(network(), [twice])
    assert math.isfinite(found.plain)
    assert found.plain < naswot_score(network(), [once]).plain - 20


@pytest.mark.parametrize('name', ['vit, small', 'swin, small', 'resnet, large', 'levit, small', 'regnet z, small'])
def test_real_networks_are_scored_and_left_as_they_were(name):
    size, make = NETWORKS[name]
    model = shake(make()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = naswot_score(model, [images(size, 4)])
    assert math.isfinite(found.plain)
    assert found.normalized <= 0
    assert found.units > 500
    assert naswot_score(model, [images(size, 4)]) == found
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_when_the_network_fails():
    model = network()
    with pytest.raises(RuntimeError):
        naswot_score(model, [torch.zeros(4, 13)])
    assert not model.activation._forward_hooks
    assert model.training


@pytest.mark.parametrize(
    ('model', 'batches', 'sentence'),
    [
        (nn.Linear(12, 3), [rows()], 'Linear runs no activation module'),
        (network(nn.Sigmoid()), [rows()], 'runs no activation module'),
        (network(), [], 'no images'),
        (network(), [rows(1)], 'at least 2 images, not 1'),
        (network(), [rows(8), rows(5)], 'of one size, with at least 2 images, not 5'),
        (network(), [rows() * math.nan], 'not finite'),
    ],
)
def test_bad_input_gets_a_sentence(model, batches, sentence):
    with pytest.raises(SnnetError, match=sentence):
        naswot_score(model, batches)
