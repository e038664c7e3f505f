from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from snnet import SnnetError, StitchableNet, create_stitchable_net
from snnet.anchors.new_head import has_new_head
from snnet.training.anchor_teachers import AnchorTeachers
from snnet.training.teacher import teacher_maker
from snnet.training.trainer import train
from tests.helpers.runs import train_settings, trainer


@pytest.fixture(scope='module')
def anchors(tmp_path_factory):
    """Two networks with weights of five classes."""
    folder = tmp_path_factory.mktemp('weights')
    for name in ('test_vit', 'test_vit2'):
        save_file(timm.create_model(name, num_classes=5, img_size=32).state_dict(), folder / f'{name}.safetensors')
    return ','.join(f'{name}={folder}/{name}.safetensors' for name in ('test_vit', 'test_vit2'))


def net_of(anchors, classes, **args):
    return create_stitchable_net(anchors, pretrained=False, num_classes=classes, img_size=32, **args)


@pytest.mark.slow  # a few seconds
def test_a_classifier_is_new_where_the_weights_hold_other_classes(anchors, tmp_path):
    for classes, new in ((5, False), (4, True)):
        assert [has_new_head(a.model) for a in net_of(anchors, classes).anchors] == [new] * 2
    assert has_new_head(net_of(anchors, 4).anchor(0).duplicate().model)
    net_of(anchors, 5).save_pretrained(tmp_path / 'net')
    for classes, new in ((None, False), (5, False), (4, True)):
        net = StitchableNet.from_pretrained(tmp_path / 'net', num_classes=classes)
        assert [has_new_head(a.model) for a in net.anchors] == [new] * 2
    random = create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32)
    assert not any(has_new_head(a.model) for a in random.anchors)


def test_weights_of_timm_with_other_classes_get_a_new_classifier(monkeypatch):
    model = timm.create_model('test_vit', num_classes=4)
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: model)
    from snnet.anchors.names import resolve
    from snnet.anchors.weights import load_model

    assert has_new_head(load_model(resolve('test_vit'), pretrained=True, num_classes=4))


@pytest.mark.parametrize(
    ('options', 'hint'),
    [
        (
            {'teacher': 'largest'},
            "teacher 'largest' is test_vit2, whose classifier for 4 .* is new.*--teacher none",
        ),
        ({'protect_anchors': 0.5}, 'the classifier of test_vit, test_vit2 is new: train without --protect-anchors'),
    ],
)
def test_a_new_classifier_teaches_nobody(tmp_path, anchors, options, hint):
    with pytest.raises(SnnetError, match=hint):
        train(train_settings(tmp_path / 'run', anchors=anchors, **options))
    assert not (tmp_path / 'run').exists()


def test_learned_classifiers_teach(anchors):
    net = net_of(anchors, 5)
    assert teacher_maker('largest', net)().model.num_classes == 5
    assert AnchorTeachers(net, 0.5).copies


def test_a_teacher_without_any_learned_weights_is_warned_of(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, 'snnet')
    with trainer(train_settings(tmp_path / 'run', teacher='largest')):
        assert "answers of the teacher 'largest' are random" in caplog.text


@pytest.mark.slow  # seconds
def test_frozen_anchors_train_their_new_classifiers_and_nothing_else(tmp_path, anchors):
    settings = train_settings(tmp_path / 'run', anchors=anchors, freeze_anchors=True, epochs=4, lr=0.1)
    torch.manual_seed(0)
    with trainer(settings) as run:
        before = {name: value.clone() for name, value in run.net.state_dict().items()}
        run.net.train()
        assert run.net.anchor(0).model.head.training
        assert not run.net.anchor(0).model.blocks.training
        run.run()
    moved = {name for name, value in run.net.state_dict().items() if not torch.equal(value, before[name])}
    heads = {f'anchors.{i}.model.head.{kind}' for i in (0, 1) for kind in ('weight', 'bias')}
    assert heads <= moved
    assert all(name in heads or name.startswith('stitch_layers.') for name in moved)
    drawn = {json.loads(line)['stitch'] for line in Path(tmp_path / 'run' / 'log.jsonl').read_text().splitlines()}
    assert drawn & {0, 1}, 'anchors are drawn, too'
