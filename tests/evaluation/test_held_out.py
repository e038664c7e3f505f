from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from timm.data import create_dataset

from snnet import SnnetError
from snnet.data.datasets import DataSettings
from snnet.evaluation.held_out import refuse_training_images
from snnet.training.finish_run import next_command
from tests.helpers.runs import write_images


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / 'images', 2, 2)
    return tmp_path / 'images'


def look(folder, split='validation', net=Path('nowhere/net'), dataset=''):
    data = DataSettings(data_dir=str(folder), dataset=dataset)
    refuse_training_images(data, split, create_dataset(dataset, str(folder), split=split), net)


def trained_on(folder, run, **settings):
    run.mkdir()
    data = {'data_dir': str(folder), 'train_split': 'train'}
    (run / 'config.yaml').write_text(yaml.safe_dump({'data': data} if settings.get('nested') else data))
    return run / 'net'


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('dataset', ['', 'torch/image_folder'])
def test_a_folder_without_splits_is_refused_if_the_net_was_trained_on_it(tmp_path, folder, nested, dataset):
    net = trained_on(folder, tmp_path / 'run', nested=nested)
    with pytest.raises(SnnetError, match='the net was trained on its images.*--val-split train'):
        look(folder, net=net, dataset=dataset)
    look(folder, 'train', net)  # asked for


def test_a_folder_without_splits_of_a_net_from_elsewhere_is_used_with_a_warning(tmp_path, folder, caplog):
    caplog.set_level(logging.WARNING, 'snnet')
    look(folder, net=trained_on(tmp_path / 'others', tmp_path / 'run'))
    assert not caplog.messages
    for content in ('', '[1, 2', '\x00', 'data: 3', 'a: b'):
        (tmp_path / 'run' / 'config.yaml').write_text(content)
        look(folder, net=tmp_path / 'run' / 'net')
    assert len(caplog.messages) == 5
    assert 'if the net was trained on them' in caplog.messages[0]


def test_a_split_of_its_own_is_evaluated_without_a_word(tmp_path, caplog):
    for split in ('train', 'val'):
        write_images(tmp_path / 'images' / split, 2, 2)
    look(tmp_path / 'images', net=trained_on(tmp_path / 'images', tmp_path / 'run'))
    assert not caplog.messages


def test_the_next_command_of_a_run_names_what_the_evaluation_needs():
    data = DataSettings(data_dir='my images', class_map='map.txt')
    whole = 'python eval_stitches.py out/net --plugin a.py'
    assert next_command(Path('out/net'), data, ['a.py'], False) == f"{whole} --data-dir 'my images' --class-map map.txt"
    assert next_command(Path('out/net'), data, ['a.py'], True).startswith(f'{whole} --data-dir FOLDER, a folder of')
