"""Accuracy of every class, confusion of a stitch, and published checkpoints in the place of a net."""

from __future__ import annotations

import csv
from dataclasses import asdict

import numpy as np
import pytest
import torch

from snnet import SnnetError, StitchableNet, UnknownStitch, create_stitchable_net
from snnet.data.datasets import open_dataset
from snnet.data.unaugmented_images import clean_loader
from snnet.evaluation.evaluate import evaluate
from snnet.evaluation.hits import HITS, read_hits, read_targets, write_hits
from snnet.evaluation.per_class import accuracy_per_class, mean_per_class
from tests.helpers.runs import eval_settings, write_images


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A saved net, and a folder with 4, 2 and 2 images of its three classes."""
    folder = tmp_path_factory.mktemp('per_class')
    torch.manual_seed(0)
    create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32).save_pretrained(
        folder / 'net'
    )
    write_images(folder / 'validation', classes=3, each=2)
    for number in range(2):
        content = (folder / 'validation' / 'class0' / f'{number}.png').read_bytes()
        (folder / 'validation' / 'class0' / f'again{number}.png').write_bytes(content)
    return folder / 'net', {'dataset': '', 'data_dir': str(folder)}


def table(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


def test_the_mean_over_classes_leaves_out_those_without_images():
    hits, targets = np.array([1, 0, 1, 1], bool), np.array([0, 0, 0, 2])
    found = accuracy_per_class(hits, targets, 4)
    assert found[[0, 2]].tolist() == [pytest.approx(200 / 3), 100]
    assert np.isnan(found[[1, 3]]).all()
    assert mean_per_class(hits, targets) == pytest.approx((200 / 3 + 100) / 2)


@pytest.mark.slow  # seconds
def test_classes_and_confusion_are_those_of_the_answers(saved, tmp_path):
    folder, data = saved
    settings = eval_settings(folder, **data, output=str(tmp_path), confusion=2)
    net, _ = evaluate(settings)
    batches = clean_loader(settings.data, open_dataset(settings.data, 'validation', net), net, range(8), 8)
    images, targets = next(iter(batches))
    with torch.no_grad():
        answers = net(images, stitch=2).argmax(1)
    counts = [[sum((targets == i) & (answers == j)).item() for j in range(3)] for i in range(3)]
    names = [f'class{i}' for i in range(3)]
    wanted = [['class', *names], *([name, *map(str, row)] for name, row in zip(names, counts, strict=True))]
    assert table(tmp_path / 'confusion-2.csv') == wanted
    head, *rows = table(tmp_path / 'classes.csv')
    assert head == ['class', 'name', 'images', *(f'stitch {i}' for i in range(len(net.stitches)))]
    assert [row[:3] for row in rows] == [['0', 'class0', '4'], ['1', 'class1', '2'], ['2', 'class2', '2']]
    assert [float(row[5]) for row in rows] == [100 * counts[i][i] / sum(counts[i]) for i in range(3)]
    mean = sum(100 * counts[i][i] / sum(counts[i]) for i in range(3)) / 3
    assert net.records[2].mean_per_class == pytest.approx(mean)
    assert StitchableNet.from_pretrained(folder).records[2].mean_per_class == pytest.approx(mean)


@pytest.mark.slow  # seconds
def test_the_confusion_of_a_stitch_that_was_evaluated_before_changes_no_result(saved, tmp_path):
    folder, data = saved
    evaluate(eval_settings(folder, **data, output=str(tmp_path)))
    before = {name: (tmp_path / name).read_bytes() for name in ('stitches.jsonl', HITS, 'classes.csv')}
    evaluate(eval_settings(folder, **data, output=str(tmp_path), stitches='0', confusion=1))
    assert {path.name for path in tmp_path.iterdir()} == {*before, 'confusion-1.csv'}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    with pytest.raises(UnknownStitch, match='stitch ids are the integers'):
        evaluate(eval_settings(folder, **data, output=str(tmp_path), confusion=1000))


def test_results_of_an_earlier_version_have_no_classes(saved, tmp_path):
    folder, data = saved
    net, _ = evaluate(eval_settings(folder, **data, output=str(tmp_path)))
    hits, targets = read_hits(tmp_path / HITS), read_targets(tmp_path / HITS)
    assert targets.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    write_hits(tmp_path / 'old', hits, 'this')
    assert read_targets(tmp_path / 'old') is None
    assert {'top1', 'mean_per_class'} <= asdict(net.records[0]).keys()


def test_a_published_checkpoint_takes_the_place_of_a_net(saved, tmp_path, monkeypatch):
    folder, data = saved
    file = tmp_path / 'released.pth'
    file.write_bytes(b'weights')
    net = StitchableNet.from_pretrained(folder)
    monkeypatch.setattr('snnet.net.open_net.load_official', lambda path, num_classes: net)
    monkeypatch.chdir(tmp_path)
    _, output = evaluate(eval_settings(file, **data))
    assert str(output) == 'output/evaluation/released'
    assert (output / 'stitches.jsonl').is_file()
    with pytest.raises(SnnetError, match='is a file: save it as a folder first'):
        evaluate(eval_settings(file, **data, recalibrate=8))


def test_a_file_that_is_no_published_checkpoint_is_explained(tmp_path, saved):
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(SnnetError, match='is not a checkpoint of the published implementation'):
        evaluate(eval_settings(tmp_path / 'other.pth', **saved[1]))
