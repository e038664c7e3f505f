"""The page about a run or an evaluation."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import snnet
from snnet.budget.record import Record
from snnet.cli.main import main
from snnet.evaluation.demanding_images import DemandingImage, demanding_images
from snnet.evaluation.evaluate import evaluate
from snnet.evaluation.report_page import Chart, ShownImage, page
from snnet.utils.json_lines import JsonLines
from tests.helpers.runs import eval_settings, write_images


def records(*accuracies):
    return [Record(i, f's{i}', flops=i + 1, top1=top1) for i, top1 in enumerate(accuracies)]


def test_images_that_need_the_largest_stitches_come_first():
    hits = {
        0: np.array([1, 0, 0, 0, 1, 0], bool),
        1: np.array([1, 1, 0, 0, 0, 1], bool),
        2: np.array([1, 1, 1, 0, 1, 0], bool),
    }
    found = demanding_images(records(10, 20, 30), hits, 9)
    assert [(shown.image, shown.record.stitch) for shown in found] == [(2, 2), (1, 1)]
    assert len(demanding_images(records(10, 20, 30), hits, 1)) == 1
    assert demanding_images(records(10, 5, 3), hits, 9) == []  # the frontier is one stitch
    assert demanding_images(records(10, 20, 30), {0: hits[0]}, 9) == []


def test_the_page_is_self_contained_and_what_strangers_wrote_is_text():
    evil = '<script>alert(1)</script>'
    shown = ShownImage(Image.new('RGB', (400, 300)), evil, evil)
    text = page(evil, [evil], [Chart(evil, note=evil)], [replace(r, legs=evil) for r in records(1, 2)], [shown])
    assert '<script' not in text
    assert text.count('&lt;script&gt;') == 10
    assert not re.search(r'(src|href)="(?!data:image/jpeg;base64,)', text)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder as a training run leaves it, with an evaluated net and six images."""
    folder = tmp_path_factory.mktemp('run')
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32).eval()
    net.class_names = ['cat', 'dog', 'fly']
    net.save_pretrained(folder / 'net')
    write_images(folder / 'images' / 'validation', 3, 2)
    evaluate(eval_settings(folder / 'net', dataset='', data_dir=str(folder / 'images')))
    log = JsonLines(folder / 'log.jsonl')
    for step in range(60):
        log.append({'step': step, 'loss': 2.0 - step / 100, 'stitch': 0})
    return folder


@pytest.mark.slow  # a few seconds
def test_a_run_becomes_a_page_with_curves_tables_and_images(run, capsys):
    assert main(['report', str(run), '--data-dir', str(run / 'images')]) == 0
    assert capsys.readouterr().out == f'wrote {run / "report.html"}\n'
    text = (run / 'report.html').read_text()
    assert '<h1>test_vit &gt; test_vit2</h1>' in text
    assert '3 classes (cat, dog, fly)' in text
    assert 'Accuracy was measured on 6 images.' in text
    assert text.count('<svg') == 2
    assert 'Loss of 60 logged steps' in text


@pytest.mark.slow  # seconds
def test_a_net_alone_becomes_a_page_without_images(run, tmp_path, capsys):
    out = tmp_path / 'page.html'
    assert main(['report', str(run / 'net'), '--out', str(out)]) == 0
    assert 'No images are shown: name them with --data-dir.' in out.read_text()


@pytest.mark.slow  # an evaluation, and pictures
def test_images_with_several_labels_are_shown_with_all_of_them(run, tmp_path, capsys, monkeypatch):
    net = snnet.StitchableNet.from_pretrained(run / 'net')
    net.several_labels = True
    net.save_pretrained(tmp_path / 'net')
    images = run / 'images'
    rows = ['file,cat,dog,fly', *(f'validation/class{i}/0.png,{int(i < 2)},{int(i == 1)},0' for i in range(3))]
    (tmp_path / 'labels.csv').write_text('\n'.join(rows))
    labels = str(tmp_path / 'labels.csv')
    evaluate(eval_settings(tmp_path / 'net', dataset='', data_dir=str(images), labels=labels))
    demanding = [DemandingImage(place, Record(0, '')) for place in range(3)]
    monkeypatch.setattr('snnet.evaluation.report.demanding_images', lambda *args: demanding)
    monkeypatch.setattr('snnet.evaluation.report.draw_curve', _no_picture)
    assert main(['report', str(tmp_path / 'net'), '--data-dir', str(images), '--labels', labels]) == 0
    text = (tmp_path / 'net' / 'report.html').read_text()
    assert re.findall('<b>(.*?)</b>', text) == ['cat', 'cat, dog', 'none of the classes']
    assert '<th>mAP</th>' in text
    assert 'a probability is that of one class by itself' in text


def _no_picture(*args):
    raise snnet.SnnetError('not drawn here')


@pytest.mark.slow  # a second
def test_pages_say_why_there_is_no_picture(tmp_path, capsys):
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32)
    net.save_pretrained(tmp_path)
    assert main(['report', str(tmp_path)]) == 0
    text = (tmp_path / 'report.html').read_text()
    assert 'No stitch has been evaluated yet' in text
    assert 'No picture: there is nothing to draw: no stitch has been evaluated' in text
    assert main(['report', str(tmp_path), '--data-dir', str(tmp_path)]) == 2
    assert 'hits.safetensors holds no results: evaluate first' in capsys.readouterr().err


def test_other_images_than_those_evaluated_are_refused(run, tmp_path, capsys, monkeypatch):
    write_images(tmp_path / 'fewer' / 'validation', 3, 1)
    assert main(['report', str(run), '--data-dir', str(tmp_path / 'fewer')]) == 2
    assert '6 images were evaluated, but there are 3' in capsys.readouterr().err
    write_images(tmp_path / 'other' / 'validation', 3, 2)
    folder = tmp_path / 'other' / 'validation'
    (folder / 'class0' / '1.png').rename(folder / 'class1' / '9.png')
    demanding = [DemandingImage(place, Record(0, '')) for place in range(6)]
    monkeypatch.setattr('snnet.evaluation.report.demanding_images', lambda *args: demanding)
    assert main(['report', str(run), '--data-dir', str(tmp_path / 'other')]) == 2
    assert 'does not hold the images that were evaluated: image 1 is of class 1' in capsys.readouterr().err
