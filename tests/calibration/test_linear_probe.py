from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from snnet import SnnetError
from snnet.calibration.linear_probe import fit_probe, hold_out


def clusters(each, features=24, classes=3, noise=1.0, seed=0):
    """Images of classes that lie around centers; features of very different sizes, one of them constant."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, features, generator=random)
    targets = torch.arange(classes).repeat(each)
    x = centers[targets] + noise * torch.randn(len(targets), features, generator=random)
    x = x * torch.logspace(-3, 3, features) + 5
    x[:, 0] = 7
    return x, targets


def test_a_fifth_of_each_class_is_held_out_and_at_least_one_image():
    targets = torch.tensor([0] * 10 + [1] * 2 + [3] * 5)
    held = hold_out(targets)
    assert [int(held[targets == label].sum()) for label in (0, 1, 3)] == [2, 1, 1]
    assert torch.equal(held, hold_out(targets))
    assert not torch.equal(held, hold_out(targets, seed=1))
    with pytest.raises(SnnetError, match='class 2 has one image'):
        hold_out(torch.tensor([0, 0, 2]))


def test_a_probe_separates_classes_whatever_the_size_of_the_features():
    x, targets = clusters(40)
    probe = fit_probe(x, targets, 4, hold_out(targets))
    fresh, wanted = clusters(40)[0][:60], clusters(40)[1][:60]
    assert (probe(fresh).argmax(1) == wanted).double().mean() > 0.95
    assert (probe.judged.argmax(1) == targets[hold_out(targets)]).double().mean() > 0.9
    assert probe.weight.isfinite().all()


def test_the_probe_minimizes_its_loss():
    """At the minimum, the gradient of the loss of standardized features is that of the ridge."""
    x, targets = clusters(20)
    probe = fit_probe(x, targets, 3, hold_out(targets))
    rows = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0).where(x.std(0) > 0, torch.ones(24))
    std = x.double().std(0, correction=0).where(x.std(0) > 0, torch.ones(24))
    weight = (probe.weight * std).requires_grad_()
    bias = (probe.bias + probe.weight @ x.double().mean(0)).requires_grad_()
    loss = F.cross_entropy(F.linear(rows, weight, bias), targets) + probe.ridge / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(float(g.abs().max()) for g in gradients) < 1e-4


def test_noisy_features_are_held_back_more_than_clear_ones():
    ridges = []
    for noise in (0.1, 4.0):
        x, targets = clusters(15, noise=noise)
        ridges.append(fit_probe(x, targets, 3, hold_out(targets)).ridge)
    assert ridges[0] < ridges[1]
