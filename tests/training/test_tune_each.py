"""`--tune each`: every network alone, then the net of the tuned ones."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from snnet import CannotStitch, SnnetError, StitchableNet
from snnet.training import trainer as trainer_file
from snnet.training.recipes import RECIPES
from snnet.training.trainer import train
from snnet.training.tune_each import runs_of
from tests.helpers.runs import train_settings, write_images

SLOW = pytest.mark.slow  # three runs


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Networks with weights of five classes, and images of two."""
    folder = tmp_path_factory.mktemp('start')
    torch.manual_seed(0)
    for name in ('test_vit', 'test_vit2'):
        save_file(timm.create_model(name, num_classes=5, img_size=32).state_dict(), folder / f'{name}.safetensors')
    write_images(folder / 'images' / 'train', classes=2, each=8, size=32)
    return folder


def settings_of(start, output, **changes):
    names = ','.join(f'{name}={start}/{name}.safetensors' for name in ('test_vit', 'test_vit2'))
    given = {
        **RECIPES['own'], 'anchors': '', 'from_': names, 'tune': 'each', 'num_classes': None, 'dataset': '',
        'img_size': 32, 'data_dir': str(start / 'images'), 'batch_size': 8, 'epochs': 1, 'warmup_epochs': 0,
        'teacher': '', 'recalibrate': 0,
    }  # fmt: skip
    return train_settings(output, **{**given, **changes})


@SLOW
def test_every_network_is_tuned_alone_and_stays_as_it_is_below_its_head(start, tmp_path):
    net = StitchableNet.from_pretrained(train(settings_of(start, tmp_path / 'run')))
    assert len(net.stitches) > len(net.anchors) == 2
    assert net.title == 'test_vit > test_vit2'  # not the folders
    for place, name in enumerate(('test_vit', 'test_vit2')):
        alone = StitchableNet.from_pretrained(tmp_path / 'run' / 'networks' / f'{place}-{name}' / 'net').anchor(0)
        given = timm.create_model(name, num_classes=5, img_size=32, checkpoint_path=str(start / f'{name}.safetensors'))
        found, first = net.anchor(place).model.state_dict(), given.state_dict()
        moved = []
        for key, tensor in alone.model.state_dict().items():
            if not key.startswith('head.'):
                assert torch.equal(found[key], tensor), key
                moved.append(not torch.equal(first[key], tensor))
        assert any(moved)


@SLOW
def test_the_same_command_goes_on_where_it_stopped(start, tmp_path, monkeypatch):
    whole = StitchableNet.from_pretrained(train(settings_of(start, tmp_path / 'whole'))).state_dict()
    once = trainer_file._train
    monkeypatch.setattr(
        trainer_file, '_train', lambda folder, *rest: None if '1-' in folder.path.name else once(folder, *rest)
    )
    assert train(settings_of(start, tmp_path / 'run')) is None
    assert not (tmp_path / 'run' / 'config.yaml').exists()
    monkeypatch.undo()
    net = StitchableNet.from_pretrained(train(settings_of(start, tmp_path / 'run')))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in whole.items())


def test_what_cannot_be_right_is_refused_before_a_network_is_tuned(start, tmp_path):
    one = f'test_vit={start}/test_vit.safetensors'
    with pytest.raises(SnnetError, match='--tune all for a single network or a whole net'):
        train(settings_of(start, tmp_path / 'run', from_=one))
    with pytest.raises(SnnetError, match='branches grow while stitches are trained'):
        train(settings_of(start, tmp_path / 'run', grow_every=2))
    with pytest.raises(CannotStitch):
        train(settings_of(start, tmp_path / 'run', from_=f'{one},test_resnet', pretrained=False))
    with pytest.raises(SnnetError, match='--from'):
        train(settings_of(start, tmp_path / 'run', from_='', anchors='test_vit,test_vit2'))
    assert not (tmp_path / 'run').exists()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'notes.txt').write_text('mine')
    with pytest.raises(SnnetError, match='holds something else'):
        train(settings_of(start, tmp_path / 'run'))
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['notes.txt']


def test_the_runs_say_what_they_do(start, tmp_path):
    runs = runs_of(settings_of(start, tmp_path / 'run', adapt_steps=3))
    assert [run.net.tune for run in runs] == ['all', 'all', 'stitches']
    assert [run.distillation.teacher for run in runs] == ['none', 'none', 'largest']
    assert [run.adaptation.wanted for run in runs] == [False, False, True]
    assert runs[-1].output == str(tmp_path / 'run')
    assert runs_of(runs[-1]) == [runs[-1]]
