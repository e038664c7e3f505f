from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from snnet import SnnetError, create_stitchable_net
from snnet.distill import DistillationLoss, Teacher, make_teacher

SAME = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope='module')
def net():
    return create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=7, img_size=32)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(5, 3, 32, 32), torch.randn(5, 7, requires_grad=True), torch.randint(7, (5,))


def test_without_teacher_the_loss_is_the_base_loss(batch):
    images, logits, targets = batch
    assert torch.equal(
        DistillationLoss(nn.CrossEntropyLoss(), None)(images, logits, targets), F.cross_entropy(logits, targets)
    )


def test_hard_distillation_mixes_in_the_teachers_most_likely_class(net, batch):
    images, logits, targets = batch
    teacher = make_teacher('largest', net)
    answer = net.anchor(1).eval()(images).argmax(1)
    expected = 0.7 * F.cross_entropy(logits, targets) + 0.3 * F.cross_entropy(logits, answer)
    loss = DistillationLoss(nn.CrossEntropyLoss(), teacher, 'hard', alpha=0.3)(images, logits, targets)
    torch.testing.assert_close(loss, expected)


def test_soft_distillation_is_the_scaled_divergence_and_vanishes_for_the_teachers_own_logits(net, batch):
    images, logits, targets = batch
    teacher = make_teacher('largest', net)
    answer = teacher(images)
    loss = DistillationLoss(nn.CrossEntropyLoss(), teacher, 'soft', alpha=1.0, tau=3.0)
    p = (answer / 3).softmax(1)
    divergence = (p * (p.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(loss(images, logits, targets), 9 * divergence)
    assert loss(images, answer, targets).abs() < 1e-6


def test_the_teacher_is_a_frozen_copy_that_stays_in_eval_mode(net, batch):
    images, logits, targets = batch
    loss = DistillationLoss(nn.CrossEntropyLoss(), make_teacher('largest', net)).train()
    assert not any(module.training for module in loss.teacher.modules())
    loss(images, logits, targets).backward()
    assert all(p.grad is None for p in loss.teacher.parameters())
    assert not {id(p) for p in loss.teacher.parameters()} & {id(p) for p in net.parameters()}


def test_images_are_normalised_anew_for_a_teacher_that_wants_it(batch):
    own, given = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = torch.rand(2, 3, 4, 4)

    def normal(x, mean, std):
        return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    teacher = Teacher(nn.Identity(), *own, *given)
    torch.testing.assert_close(teacher(normal(pixels, *given)), normal(pixels, *own))
    unchanged = normal(pixels, *SAME)
    assert torch.equal(Teacher(nn.Identity(), *SAME, *SAME)(unchanged), unchanged)


def test_any_timm_network_teaches_but_not_one_of_other_classes(net, tmp_path):
    for classes in (7, 9):
        model = timm.create_model('test_resnet', num_classes=classes)
        save_file(model.state_dict(), tmp_path / f'{classes}.safetensors')
    assert make_teacher(f'test_resnet={tmp_path}/7.safetensors', net).model.num_classes == 7
    with pytest.raises(SnnetError, match='knows 9 classes, the anchors 7'):
        make_teacher(f'test_resnet={tmp_path}/9.safetensors', net)


def test_a_teacher_for_images_of_another_size_is_refused(net, tmp_path):
    save_file(timm.create_model('levit_128s', num_classes=7).state_dict(), tmp_path / 'levit.safetensors')
    with pytest.raises(SnnetError, match='teacher levit_128s.* does not take the images of 3x32x32'):
        make_teacher(f'levit_128s={tmp_path}/levit.safetensors', net)
