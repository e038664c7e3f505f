"""Anchors taught by their originals: what the loss is, and that it holds them back."""

from __future__ import annotations

import pytest
import torch

from snnet import SnnetError, StitchableNet
from snnet.training.anchor_teachers import AnchorTeachers
from snnet.training.trainer import train
from tests.helpers.families import images, three_vits
from tests.helpers.runs import train_settings


@pytest.mark.slow  # seconds
def test_an_anchor_that_is_its_original_has_nothing_to_learn_and_one_that_moved_is_drawn_back():
    net, x = three_vits(), images(32, 4)
    teachers = AnchorTeachers(net, 1.0)
    head = net.anchor(1).model.head
    original = head.bias.detach().clone()
    assert float(teachers(1, x, net(x, stitch=1), torch.zeros(())).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        head.bias[0] += 1
    before = float(teachers(1, x, net(x, stitch=1), torch.zeros(())).detach())
    assert before > 0.01
    for _ in range(200):
        head.zero_grad()
        teachers(1, x, net(x, stitch=1), torch.zeros(())).backward()
        with torch.no_grad():
            head.bias -= head.bias.grad
    assert float(teachers(1, x, net(x, stitch=1), torch.zeros(())).detach()) < 0.01 * before
    drift = head.bias.detach() - original
    assert (drift - drift.mean()).abs().max() < 0.1  # a softmax cannot see a common shift


def test_each_anchor_has_its_own_teacher_and_the_weight_mixes_it_with_the_loss():
    net, x = three_vits(), images(32)
    teachers, loss = AnchorTeachers(net, 0.25), torch.tensor(8.0)
    for own in range(3):
        logits = net(x, stitch=own).detach()
        assert float(teachers(own, x, logits, loss).detach()) == pytest.approx(6.0)
        assert float(teachers((own + 1) % 3, x, logits, loss).detach()) > 6.001


def test_stitches_that_are_no_anchors_keep_their_loss():
    net, x = three_vits(), images(32)
    loss = torch.tensor(8.0)
    assert AnchorTeachers(net, 1.0)(3, x, net(x, stitch=3), loss) is loss


def test_the_copies_are_frozen_in_eval_mode_and_no_part_of_the_net():
    net = three_vits().train()
    names = set(net.state_dict())
    teachers = AnchorTeachers(net, 0.5).train()
    assert not any(p.requires_grad for p in teachers.parameters())
    assert not any(module.training for module in teachers.modules())
    assert set(net.state_dict()) == names
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize('weight', [-0.5, 1.5, float('nan')])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(SnnetError, match=f'protect_anchors .* not {weight}'):
        AnchorTeachers(three_vits(), weight)


@pytest.mark.slow
def test_a_protected_anchor_ends_nearer_to_what_it_was(tmp_path):
    x, logits = images(32, 8), {}
    for name, changes in {'start': {'epochs': 0}, 'free': {}, 'protected': {'protect_anchors': 0.9}}.items():
        settings = {'opt': 'sgd', 'lr': 0.05, 'sampler': 'anchors', 'sampler_anchors': 0.99, **changes}
        net = StitchableNet.from_pretrained(train(train_settings(tmp_path / name, **settings)))
        with torch.no_grad():
            logits[name] = torch.cat([net(x, stitch=0), net(x, stitch=1)]).log_softmax(1)
    free, protected = ((logits[name] - logits['start']).square().mean() for name in ('free', 'protected'))
    assert protected < 0.3 * free
