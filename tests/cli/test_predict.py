from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

import snnet
from snnet.cli.main import main
from snnet.net.hardware import setup_of
from tests.helpers.runs import write_images


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A saved net with class names, accuracies that rise with the id, and a latency table."""
    folder = tmp_path_factory.mktemp('net')
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32).eval()
    net.records = [replace(record, top1=50.0 + record.stitch, n=10) for record in net.records]
    net.class_names = ['cat', 'dog', 'Käfer']
    net.save_pretrained(folder / 'net')
    rows = {r.stitch: snnet.Latency(1.0 + r.stitch, 1.0, 9.0, 1000) for r in net.records}
    table = snnet.LatencyTable(setup_of(net), 1, net.fingerprint, rows)
    (folder / 'net' / 'profiles').mkdir()
    (folder / 'net' / 'profiles' / table.file_name).write_text(table.to_json())
    write_images(folder / 'photos', 2, 2)
    (folder / 'photos' / 'notes.txt').write_text('not an image')
    return folder


@pytest.mark.slow  # a few seconds
def test_it_prints_a_line_per_image_of_a_folder(folder, capsys):
    assert main(['predict', str(folder / 'net'), str(folder / 'photos'), '--topk', '2', '--batch-size', '3']) == 0
    caught = capsys.readouterr()
    lines = caught.out.splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(r'.*/photos/class\d/\d\.png: (cat|dog|Käfer) [\d.]+%, \w+ [\d.]+%', line) for line in lines)
    assert re.search(r'^stitch \d+ \(.*\): the most accurate$', caught.err, re.MULTILINE)


@pytest.mark.parametrize(
    ('flags', 'stitch'), [(['--stitch', '1'], 1), (['--latency-ms', '3.5'], 2), (['--flops', '1e12'], None)]
)
def test_a_stitch_is_chosen_by_id_or_budget(folder, capsys, flags, stitch):
    assert main(['predict', str(folder / 'net'), str(folder / 'photos'), *flags]) == 0
    net = snnet.StitchableNet.from_pretrained(folder / 'net')
    expected = stitch if stitch is not None else len(net.stitches) - 1
    assert f'stitch {expected} ({net.stitches[expected]})' in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on(folder, tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(b'nothing')
    (tmp_path / 'b.png').write_bytes((folder / 'photos' / 'class0' / '0.png').read_bytes())
    out = tmp_path / 'out.json'
    assert main(['predict', str(folder / 'net'), str(tmp_path), '--out', str(out)]) == 1
    caught = capsys.readouterr()
    assert f'{tmp_path}/a.png cannot be read: no image in a format that Pillow knows' in caught.err
    assert '1 of 2 images cannot be read' in caught.err
    assert list(json.loads(out.read_text())) == [f'{tmp_path}/b.png']


def test_csv_and_json_hold_what_python_predicts(folder, tmp_path, capsys):
    net = snnet.StitchableNet.from_pretrained(folder / 'net')
    for name in ('out.csv', 'out.json'):
        command = ['predict', str(folder / 'net'), str(folder / 'photos'), '--stitch', '4', '--topk', '2']
        assert main([*command, '--out', str(tmp_path / name)]) == 0
    with open(tmp_path / 'out.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    values = json.loads((tmp_path / 'out.json').read_text(encoding='utf-8'))
    assert [row['filename'] for row in rows] == list(values) == sorted(values)
    for row, prediction in zip(rows, net.predict(list(values), stitch=4, topk=2), strict=True):
        held = values[row['filename']]
        assert (row['label_0'], row['label_1']) == tuple(held['label']) == prediction.labels
        assert [int(row['index_0']), int(row['index_1'])] == held['index']
        assert [float(row['prob_0']), float(row['prob_1'])] == held['prob'] == list(prediction.probabilities)


def test_parquet_holds_the_same_or_names_its_extra(folder, tmp_path, capsys):
    command = ['predict', str(folder / 'net'), str(folder / 'photos'), '--out', str(tmp_path / 'out.parquet')]
    try:
        from pyarrow import parquet
    except ImportError:
        assert main(command) == 2
        assert "writing Parquet needs pyarrow: pip install -e '.[parquet]'" in capsys.readouterr().err
        return
    assert main(command) == 0
    assert parquet.read_table(tmp_path / 'out.parquet').column_names == ['filename', 'label', 'prob', 'index']


def test_a_class_map_names_the_classes(folder, tmp_path, capsys):
    (tmp_path / 'names.txt').write_text('one\ntwo\nthree\n')
    command = ['predict', str(folder / 'net'), str(folder / 'photos'), '--class-map']
    assert main([*command, str(tmp_path / 'names.txt'), '--topk', '3']) == 0
    assert re.search(r'one [\d.]+%', capsys.readouterr().out)
    assert main([*command, 'imagenet']) == 2
    assert 'timm knows no subset of ImageNet with 3 classes' in capsys.readouterr().err


def test_images_of_other_endings_are_said_to_be_left_out_and_read_where_they_are_named(folder, tmp_path, capsys):
    photo = folder / 'photos' / 'class0' / '0.png'
    for name in ('a.png', 'b.bmp'):
        Image.open(photo).save(tmp_path / name)
    assert main(['predict', str(folder / 'net'), str(tmp_path)]) == 0
    caught = capsys.readouterr()
    assert f"1 images in '{tmp_path}' are left out for their endings, such as {tmp_path}/b.bmp" in caught.err
    assert 'b.bmp' not in caught.out
    assert main(['predict', str(folder / 'net'), str(tmp_path / 'b.bmp')]) == 0
    assert f'{tmp_path}/b.bmp: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['nowhere'], "there is no image or folder 'nowhere'"),
        (['{empty}'], "no images in '.*'"),
        (['{photos}', '--stitch', '99'], 'stitch ids are the integers 0 to'),
        (['{photos}', '--stitch', '1', '--flops', '1e9'], 'choose a stitch .* or limits that it must keep, not both'),
        (['{photos}', '--flops', '1'], 'no stitch has flops <= 1'),
        (['{photos}', '--topk', '0'], 'topk is at least 1, not 0'),
        (['{photos}', '--out', 'x.xlsx'], r"results are written as \.csv, .*, but --out x\.xlsx ends in '\.xlsx'"),
        (['{photos}', '--out', 'nowhere/x.csv'], "there is no folder 'nowhere'"),
        (['{photos}', '--out', '{folder}'], 'results are written into a file, but --out .* is a folder'),
        (['{photos}', '--plugin', '{broken}'], r"plugin '.*' stops in line 2: ZeroDivisionError: division by zero"),
        (['{photos}', '--device', 'abacus'], "device is cpu or cuda, not 'abacus'"),
        (['{photos}', '--class-map', 'nowhere.txt'], r'class map nowhere\.txt cannot be read'),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, capsys, more, message):
    (tmp_path / 'folder.csv').mkdir()
    (tmp_path / 'broken_plugin.py').write_text('x = 0\n1 / x\n')
    places = {'empty': tmp_path, 'photos': folder / 'photos', 'folder': tmp_path / 'folder.csv'}
    places['broken'] = tmp_path / 'broken_plugin.py'
    assert main(['predict', str(folder / 'net'), *(word.format(**places) for word in more)]) == 2
    assert re.search(message, capsys.readouterr().err)
