from __future__ import annotations

import logging
import statistics

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from snnet.errors import SnnetError
from snnet.reparam import SCORES, Grower
from snnet.reparam.scores import Scores


def batch(count=8, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 5


def network(dtype=torch.float32, eps=1e-5, channels=(8, 16, 24, 32)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model('resnet18', num_classes=5, channels=channels, zero_init_last=False).to(dtype)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = eps
    return model


def convolutions(model):
    """All convolutions are followed by a BatchNorm."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def observed(score, model, dtype=torch.float32, seeds=(0,)):
    scores = Scores(score)
    for seed in seeds:
        images, targets = batch(seed=seed)
        loss = F.cross_entropy(model(images.to(dtype)), targets)
        model.zero_grad()
        loss.backward(retain_graph=True)
        scores.observe(convolutions(model), loss)
    return scores


def synflow_shares(model):
    """|synflow| relative to snip, of each convolution."""
    synflow, snip = (observed(score, model, torch.float64).values()[score] for score in ('synflow', 'snip'))
    return {name: abs(synflow[name]) / snip[name] for name in snip}


def test_synflow_is_zero_before_a_batch_norm():
    model = network(torch.float64, channels=(64, 128, 256, 512)).train()
    assert max(synflow_shares(model).values()) <= 1e-6


def test_what_is_left_of_synflow_is_proportional_to_eps():
    large, small = (synflow_shares(network(torch.float64, eps).train()) for eps in (1e-5, 1e-7))
    assert statistics.median(large[name] / small[name] for name in large) == pytest.approx(100, rel=0.05)


def test_synflow_is_not_zero_in_eval_mode():
    assert min(synflow_shares(network(torch.float64).eval()).values()) > 1e-3


def test_grasp_of_a_scale_free_weight_is_the_square_of_its_gradient():
    """The loss does not change along the weight w, so w' H = -g' and -w' H g = |g|^2: two derivatives agree."""
    model = network(torch.float64, 1e-12).train()
    grasp = observed('grasp', model, torch.float64).values()['grasp']
    norms = observed('grad_norm', model, torch.float64).values()['grad_norm']
    assert grasp.keys() == norms.keys()
    for name, value in grasp.items():
        assert value == pytest.approx(norms[name] ** 2, rel=1e-3)


@pytest.mark.parametrize(
    ('score', 'of_batch'),
    [
        ('grad_norm', lambda weight, grad: grad.square().sum().sqrt()),
        ('snip', lambda weight, grad: (weight * grad).abs().sum()),
        ('synflow', lambda weight, grad: (weight * grad).sum()),
    ],
)
def test_scores_are_sums_over_the_batches_of_an_interval(score, of_batch):
    model = network(torch.float64).eval()
    values = observed(score, model, torch.float64, seeds=(0, 1)).values()[score]
    expected = dict.fromkeys(values, 0.0)
    for seed in (0, 1):
        images, targets = batch(seed=seed)
        model.zero_grad()
        F.cross_entropy(model(images.double()), targets).backward()
        for name, module in convolutions(model).items():
            expected[name] += float(of_batch(module.weight, module.weight.grad).detach())
    assert values == pytest.approx(expected, rel=1e-9)


def test_random_scores_depend_on_seed_and_interval_alone():
    names = [f'conv{i}' for i in range(20)]
    first = Scores('random', 1).ranked(names, 3)
    assert Scores('random', 1).ranked(names, 3) == first
    assert Scores('random', 1).ranked(names, 4) != first
    assert Scores('random', 2).ranked(names, 3) != first


def test_the_most_votes_win_and_snip_decides_ties():
    scores = Scores('vote')
    network = nn.ModuleDict({name: nn.Linear(1, 1) for name in 'abc'})
    sums = {
        'snip': {'a': 3.0, 'b': 2.0, 'c': 1.0},
        'grad_norm': {'a': 1.0, 'b': 3.0, 'c': 2.0},
        'synflow': {'a': 1.0, 'b': 4.0, 'c': 1.0},
    }
    scores.load(sums, None, network)
    assert scores.ranked(['a', 'b', 'c'], 1) == ['b', 'a', 'c']
    assert scores.ranked(['a', 'c'], 1) == ['a', 'c']


def test_scores_are_means_over_the_batches_in_which_a_module_took_part():
    modules = {name: nn.Linear(1, 1, bias=False) for name in ('often', 'rarely')}
    scores = Scores('snip')
    for batch in range(4):
        for name, module in modules.items():
            drawn = name == 'often' or batch == 0
            module.weight.grad = torch.full((1, 1), 1.0 if name == 'often' else 2.0) / module.weight if drawn else None
        scores.observe(modules)
    assert scores.ranked(['often', 'rarely'], 1) == ['rarely', 'often']  # sums would be 4 and 2
    again = Scores('snip')
    again.load(scores.values(), scores.counts(), nn.ModuleDict(modules))
    assert again.ranked(['often', 'rarely'], 1) == ['rarely', 'often']


def test_only_synflow_is_warned_of(caplog):
    for score in SCORES:
        with caplog.at_level(logging.WARNING):
            Scores(score)
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'synflow is zero for every convolution that a BatchNorm follows' in caplog.text


def test_an_unknown_score_is_refused_and_grasp_asks_for_the_loss():
    with pytest.raises(SnnetError, match="random, grad_norm, snip, grasp, synflow, vote, not 'magnitude'"):
        Scores('magnitude')
    with pytest.raises(SnnetError, match=r'grower.observe\(loss\) before loss.backward'):
        Grower(network(), 1, 'grasp').observe()


def test_a_score_that_is_not_a_number_is_told_with_its_convolution():
    model = network()
    grower = Grower(model, 2)
    images, targets = batch()
    F.cross_entropy(model(images), targets).backward()
    model.layer2[0].conv1.weight.grad[0, 0, 0, 0] = float('nan')
    grower.observe()
    grower.step()
    with pytest.raises(SnnetError, match='the score snip of layer2.0.conv1 is not a number'):
        grower.step()


def test_what_mixed_precision_passes_over_is_passed_over():
    model = network()
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    grower = Grower(model, 1, scaler=scaler)
    images, targets = batch()
    scaler.scale(F.cross_entropy(model(images), targets)).backward()
    grower.observe()
    expected = grower.scores.values()
    plain = observed('snip', model).values()['snip']
    assert expected['snip'] == pytest.approx({name: plain[name] for name in expected['snip']}, rel=1e-4)
    model.layer2[0].conv1.weight.grad[0, 0, 0, 0] = float('inf')
    grower.observe()
    assert grower.scores.values() == expected
    assert grower.step()
