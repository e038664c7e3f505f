from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from snnet import NoWeights, SnnetError, create_stitchable_net
from snnet.training.answer import Question
from snnet.training.distillation import DistillationLoss
from snnet.training.teacher import Teacher, teacher_identity, teacher_maker

SAME = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope='module')
def net():
    return create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=7, img_size=32)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(5, 3, 32, 32), torch.randn(5, 7, requires_grad=True), torch.randint(7, (5,))


@pytest.fixture
def pair():
    """Logits of a student and a teacher."""
    draw = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(6, 40, generator=draw) for _ in range(2))


def soft(student, teacher, topk, tau=1.0):
    loss = DistillationLoss(nn.CrossEntropyLoss(), alpha=1.0, tau=tau)
    return loss(student, torch.zeros(len(student), dtype=torch.long), Question('soft', topk, tau).answer(teacher))


def divergence(student, teacher, tau):
    p = (teacher / tau).softmax(1)
    return (p * (p.log() - (student / tau).log_softmax(1))).sum(1).mean() * tau**2


def test_without_an_answer_the_loss_is_the_base_loss(batch):
    _, logits, targets = batch
    assert torch.equal(DistillationLoss(nn.CrossEntropyLoss())(logits, targets), F.cross_entropy(logits, targets))


def test_hard_distillation_mixes_in_the_teachers_most_likely_class(net, batch):
    images, logits, targets = batch
    answer = Question('hard').answer(teacher_maker('largest', net)()(images))
    label = net.anchor(1).eval()(images).argmax(1)
    assert torch.equal(answer.classes, label[:, None])
    expected = 0.7 * F.cross_entropy(logits, targets) + 0.3 * F.cross_entropy(logits, label)
    torch.testing.assert_close(DistillationLoss(nn.CrossEntropyLoss(), 0.3)(logits, targets, answer), expected)


@pytest.mark.parametrize('tau', [1.0, 3.0])
@pytest.mark.parametrize('topk', [0, 40, 99])
def test_a_soft_answer_of_all_classes_gives_the_divergence_up_to_half_precision(pair, topk, tau):
    torch.testing.assert_close(soft(*pair, topk, tau), divergence(*pair, tau), rtol=2e-3, atol=0)
    assert soft(pair[1], pair[1], topk, tau).abs() < 1e-5


@pytest.mark.parametrize('tau', [1.0, 2.0])
def test_fewer_classes_bound_the_divergence_from_below_and_more_come_nearer(pair, tau):
    losses = [float(soft(*pair, k, tau)) for k in (1, 2, 4, 8, 16, 32, 39)]
    assert all(a < b + 1e-4 for a, b in pairwise(losses))
    assert 0 < losses[0] < losses[-1] < float(divergence(*pair, tau)) * 1.002
    assert losses[4] > 0.5 * losses[-1]


def test_the_gradient_moves_the_top_classes_to_the_teachers_shares_and_the_others_together(pair):
    student, teacher = pair[0].clone().requires_grad_(), pair[1]
    tau, k = 2.0, 5
    soft(student, teacher, k, tau).backward()
    p, q = (student.detach() / tau).softmax(1), (teacher / tau).softmax(1)
    top = torch.zeros_like(p, dtype=torch.bool).scatter(1, teacher.topk(k).indices, True)
    others = [(x * ~top).sum(1, keepdim=True) for x in (p, q)]
    wanted = torch.where(top, q, p * others[1] / others[0])  # the rest keeps its shape and takes the teacher's share
    torch.testing.assert_close(student.grad, tau * (p - wanted) / len(p), rtol=1e-3, atol=1e-4)


def test_a_teacher_that_is_all_but_sure_leaves_loss_and_gradient_finite():
    student = (1e4 * torch.eye(3, 20)).requires_grad_()
    loss = soft(student, 3e5 * torch.eye(3, 20).roll(1, 0), 4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert soft(student, 3e5 * torch.eye(3, 20), 4) == 0


def test_the_answer_is_compact_and_under_autocast_the_same_kind():
    network, images = nn.Linear(8, 40), torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for amp in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp), torch.no_grad():
            logits = network(images)
            answers = [Question('soft', topk).answer(logits) for topk in (16, 0)]
            loss = DistillationLoss(nn.CrossEntropyLoss())(logits, torch.zeros(6, dtype=torch.long), answers[0])
        assert logits.dtype == (torch.bfloat16 if amp else torch.float32)
        assert [(a.shares.dtype, a.shares.shape[1]) for a in answers] == [(torch.float16, 17), (torch.float16, 40)]
        assert (answers[0].classes.dtype, answers[0].classes.shape, answers[1].classes) == (torch.int64, (6, 16), None)
        torch.testing.assert_close(answers[0].classes, logits.topk(16).indices)
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ('question', 'hint'),
    [
        ({'kind': 'firm'}, 'hard or soft'),
        ({'tau': 0.0}, 'above 0'),
        ({'tau': float('nan')}, 'above 0'),
        ({'topk': -1}, 'number of classes.*not -1'),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(question, hint):
    with pytest.raises(SnnetError, match=hint):
        Question(**question)


def test_a_weight_of_the_teacher_outside_0_to_1_is_refused():
    with pytest.raises(SnnetError, match='0 <= alpha <= 1'):
        DistillationLoss(nn.CrossEntropyLoss(), alpha=1.5)


def test_the_teacher_is_a_frozen_copy_that_stays_in_eval_mode(net, batch):
    teacher = teacher_maker('largest', net)().train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(batch[0].requires_grad_()).requires_grad
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in net.parameters()}


def test_the_largest_anchor_teaches_as_it_was_before_training_whenever_the_teacher_is_made(batch):
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=7, img_size=32)
    make = teacher_maker('largest', net)
    before = net.anchor(1).eval()(batch[0])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    assert torch.equal(make()(batch[0]), before)
    assert not torch.equal(net.anchor(1)(batch[0]), before)


def test_images_are_normalized_again_for_a_teacher_trained_otherwise():
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
    assert teacher_maker(f'test_resnet={tmp_path}/7.safetensors', net)().model.num_classes == 7
    with pytest.raises(SnnetError, match='has 9 classes, but the anchors have 7'):
        teacher_maker(f'test_resnet={tmp_path}/9.safetensors', net)()


@pytest.mark.parametrize('prefix', ['', 'module.encoder_q.'])
def test_a_teacher_without_a_classifier_is_refused_with_what_helps(net, tmp_path, prefix):
    weights = timm.create_model('test_resnet', num_classes=0).state_dict()
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / 'headless.safetensors')
    with pytest.raises(SnnetError, match='has no classifier, so it cannot answer: .* of 7 classes .*--teacher none'):
        teacher_maker(f'test_resnet={tmp_path}/headless.safetensors', net)()


def test_a_teacher_for_images_of_another_size_is_refused(net, tmp_path):
    save_file(timm.create_model('levit_128s', num_classes=7).state_dict(), tmp_path / 'levit.safetensors')
    with pytest.raises(SnnetError, match='teacher levit_128s.* does not take the images of 3x32x32'):
        teacher_maker(f'levit_128s={tmp_path}/levit.safetensors', net)()


def test_a_teacher_is_told_from_others_by_tag_file_or_weights_without_loading_it(net, tmp_path):
    assert teacher_identity('regnety_160', net) == ('regnety_160.deit_in1k', '')
    assert teacher_identity('resnet50.tv_in1k', net) == ('resnet50.tv_in1k', '')
    assert teacher_identity('test_resnet', net) == ('test_resnet.r160_in1k', '')
    file = tmp_path / 'weights'
    digests = set()
    for content in (b'a', b'b'):
        file.write_bytes(content)
        name, digest = teacher_identity(f'test_resnet={file}', net)
        assert name == 'test_resnet'
        digests.add(digest)
    assert len(digests) == 2
    file.unlink()
    assert teacher_identity(f'test_resnet={file}', net) == ('test_resnet', None)
    with pytest.raises(NoWeights, match='no file'):
        teacher_maker(f'test_resnet={file}', net)()
    with pytest.raises(SnnetError, match='unknown network'):
        teacher_identity('resnet5', net)
    before = teacher_identity('largest', net)
    assert before == teacher_identity('largest', net)
    with torch.no_grad():
        next(net.anchor(1).parameters()).view(-1)[0].add_(1)
    assert teacher_identity('largest', net) != before
