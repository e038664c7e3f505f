from __future__ import annotations

import os

import pytest

from snnet.cli.main import main
from tests.helpers.runs import write_images


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / 'photos', classes=2, each=10, size=4)
    (tmp_path / 'photos' / 'class0' / 'notes.txt').write_text('no image')
    return tmp_path / 'photos'


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


def test_every_image_lands_in_one_split_and_a_share_of_each_class_in_validation(photos, tmp_path, capsys):
    assert main(['split', str(photos), '--output', str(tmp_path / 'out'), '--share', '0.3']) == 0
    assert '2 classes: 14 images for training and 6 for validation' in capsys.readouterr().out
    parts = [names(tmp_path / 'out' / split) for split in ('train', 'validation')]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == names(photos) - {'class0/notes.txt'}
    assert [sum(name.startswith(f'class{i}') for name in parts[1]) for i in range(2)] == [3, 3]
    main(['split', str(photos), '--output', str(tmp_path / 'again'), '--share', '0.3'])
    assert names(tmp_path / 'again') == names(tmp_path / 'out')
    main(['split', str(photos), '--output', str(tmp_path / 'other'), '--share', '0.3', '--seed', '1'])
    assert names(tmp_path / 'other') != names(tmp_path / 'out')


def test_images_behind_relative_links_can_be_read_in_their_new_place(photos, tmp_path):
    for file in photos.rglob('*.png'):
        link = tmp_path / 'links' / file.relative_to(photos)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(file, link.parent))
    assert main(['split', str(tmp_path / 'links'), '--output', str(tmp_path / 'deep' / 'out')]) == 0
    assert all(path.read_bytes()[1:4] == b'PNG' for path in (tmp_path / 'deep' / 'out').rglob('*.png'))


def test_images_that_are_left_out_are_said(photos, tmp_path, capsys):
    (photos / 'class0' / '3.png').rename(photos / 'class0' / '3.webp')
    assert main(['split', str(photos), '--output', str(tmp_path / 'out')]) == 0
    assert '1 images are left out for their endings, such as ' in capsys.readouterr().err
    assert len(names(tmp_path / 'out')) == 19


@pytest.mark.parametrize(
    ('arguments', 'hint'),
    [
        (['photos'], 'name a new folder with --output'),
        (['photos', '--output', 'photos'], "'photos' is there already"),
        (['nowhere', '--output', 'out'], "there is no folder 'nowhere'"),
        (['photos', '--output', 'out', '--share', '1'], 'share is above 0 and below 1, not 1.0'),
        (['photos/class0', '--output', 'out'], 'needs two folders of images or more'),
        (['divided', '--output', 'out'], 'is divided already: it holds train'),
        (['capitals', '--output', 'out'], 'is divided already: it holds Test, Training'),
        (['photos', '--output', 'photos/out'], "'photos/out' lies within 'photos', where it would be another class"),
        (['single', '--output', 'out'], 'class0, class1 has fewer than two images'),
    ],
)
def test_what_cannot_be_divided_is_said_in_a_sentence(photos, tmp_path, monkeypatch, capsys, arguments, hint):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / 'divided' / 'train', 2, 1, size=4)
    write_images(tmp_path / 'single', 2, 1, size=4)
    for split in ('Training', 'Test'):
        write_images(tmp_path / 'capitals' / split, 2, 1, size=4)
    assert main(['split', *arguments]) == 2
    assert hint in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
