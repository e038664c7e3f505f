from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import snnet
from snnet.budget.frontier import reduce_frontier
from snnet.cli.export import ExportSettings, run
from snnet.config.parse import parse
from snnet.exporting.export import Exported
from snnet.exporting.export_set import PROGRESS, _StitchSet, export_set
from snnet.exporting.prepared_stitch import PreparedStitch
from snnet.exporting.set_index import INDEX, pick, read_index
from tests.helpers.families import images, three_vits
from tests.helpers.mutations import is_refused, mutated, nothing_outside


def evaluated(seed: int = 0) -> snnet.StitchableNet:
    """Three anchors and their stitches, more accurate where they cost more but for some noise."""
    net, noise = three_vits(), np.random.default_rng(seed)
    net.records = [dataclasses.replace(r, top1=50 + r.flops / 1e5 + noise.uniform(0, 2)) for r in net.records]
    return net


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """The names of the files that are exported, of which the stitch is all that they hold here."""
    names: list[str] = []

    def write(prepared: PreparedStitch, path: Path) -> Exported:
        path.write_text(f'{prepared.module.stitch} {prepared.fingerprint()}')
        names.append(path.name)
        return Exported(path, None, prepared.format, None, '', (1,), 1e-6, 1.0, prepared.metadata)

    monkeypatch.setattr(snnet.exporting.export_set, 'write', write)
    return names


@pytest.mark.slow  # a few seconds
def test_a_set_is_the_reduced_frontier_and_each_file_runs(tmp_path):
    net = evaluated()
    made = export_set(net, tmp_path / 'set', 3)
    assert [entry.record for entry in made.entries] == reduce_frontier(net.frontier(), 3)
    assert {path.name for path in made.folder.iterdir()} == {INDEX, *(entry.path.name for entry in made.entries)}
    for entry in made.entries:
        run = torch.export.load(entry.path).module()
        with torch.no_grad():
            torch.testing.assert_close(run(images(32, 3)), net(images(32, 3), stitch=entry.record.stitch))
    assert made.about['input_size'] == [3, 32, 32]
    assert (made.about['classes'], made.about['mean'], made.about['file_format']) == (7, [0.5, 0.5, 0.5], 'pt2')


@pytest.mark.slow  # seconds
def test_an_interrupted_set_goes_on_and_only_damaged_files_are_made_again(tmp_path, written, monkeypatch):
    net, whole = evaluated(), snnet.exporting.export_set.write

    def stopped(prepared: PreparedStitch, path: Path) -> Exported:
        if len(written) == 2:
            raise KeyboardInterrupt
        return whole(prepared, path)

    monkeypatch.setattr(snnet.exporting.export_set, 'write', stopped)
    with pytest.raises(KeyboardInterrupt):
        export_set(net, tmp_path, 4)
    with pytest.raises(snnet.SnnetError, match='holds no set of exported stitches'):
        read_index(tmp_path)
    monkeypatch.setattr(snnet.exporting.export_set, 'write', whole)
    made = export_set(net, tmp_path, 4)
    assert written == [entry.path.name for entry in made.entries]
    assert not (tmp_path / PROGRESS).exists()
    export_set(net, tmp_path, 4)
    assert len(written) == 4
    made.entries[1].path.write_text('damaged')
    assert export_set(net, tmp_path, 4) == made
    assert written[4:] == [made.entries[1].path.name]


@pytest.mark.quick('points')
@pytest.mark.parametrize('change', ['points', 'weights', 'format', 'accuracy'])
def test_another_set_is_replaced_only_on_demand(change, tmp_path, written):
    net = evaluated()
    first = export_set(net, tmp_path, 4)
    options = {'format': 'onnx'} if change == 'format' else {}
    if change == 'weights':
        known = list(net.records)
        with torch.no_grad():
            net.anchor(0).model.head.bias.add_(1)
        net.records = known  # as if evaluated again: accuracies go with the weights
    if change == 'accuracy':
        net.records = [dataclasses.replace(record, top1=record.top1 + 1) for record in net.records]
    points = 3 if change == 'points' else 4
    with pytest.raises(snnet.SnnetError, match='holds a set of other stitches, weights, accuracies or format'):
        export_set(net, tmp_path, points, **options)
    assert read_index(tmp_path) == first
    second = export_set(net, tmp_path, points, overwrite=True, **options)
    assert {path.name for path in tmp_path.iterdir()} == {INDEX, *(entry.path.name for entry in second.entries)}
    kept = {'points': {entry.path.name for entry in first.entries}, 'weights': set(written[1:4])}.get(change, set())
    assert written[4:] == [entry.path.name for entry in second.entries if entry.path.name not in kept]


def test_a_net_that_was_not_evaluated_has_no_set(tmp_path):
    with pytest.raises(snnet.SnnetError, match='no stitch has been evaluated, so there is no frontier'):
        export_set(three_vits(), tmp_path / 'set', 3)
    assert not (tmp_path / 'set').exists()


def test_a_set_over_an_unknown_cost_or_inside_a_file_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(snnet.SnnetError, match='no evaluated stitch has a known latency_ms: snnet profile FOLDER'):
        export_set(evaluated(), tmp_path / 'set', 2, cost='latency_ms')
    with pytest.raises(snnet.SnnetError, match=r"test_export_set\.py' is a file, so there cannot be a folder"):
        export_set(evaluated(), f'{__file__}/set', 2)
    assert not (tmp_path / 'set').exists()


def test_a_server_picks_by_budget_what_the_net_would_choose(tmp_path, written):
    made = export_set(evaluated(), tmp_path, 4)
    for entry in made.entries:
        assert pick(made, flops=entry.record.flops) == entry
        assert pick(made, params=entry.record.params + 1).record.top1 >= entry.record.top1
    with pytest.raises(snnet.BudgetInfeasible):
        pick(made, flops=1)
    with pytest.raises(snnet.InvalidBudget):
        pick(made)


def test_the_index_is_read_without_torch(tmp_path, written):
    export_set(evaluated(), tmp_path, 3)
    code = f"""
import sys
sys.modules.update(torch=None, numpy=None, timm=None)
from snnet.exporting.set_index import pick, read_index
print(pick(read_index({str(tmp_path)!r}), flops=1e9).path)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(tmp_path / written[-1]), done.stderr


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        ('{', 'is not a valid JSON file'),
        ('[]', 'does not describe a set'),
        ('{"format": 2, "files": []}', 'has format 2, this snnet reads 1'),
        ('{"format": 1, "files": [{"file": "a.pt2"}]}', 'is damaged: '),
        ('{"format": 1, "files": [3]}', 'is damaged: '),
    ],
)
def test_a_damaged_index_is_refused_in_a_sentence_and_replaced_on_demand(damage, message, tmp_path, written):
    (tmp_path / INDEX).write_text(damage)
    with pytest.raises(snnet.SnnetError, match=message):
        read_index(tmp_path)
    with pytest.raises(snnet.SnnetError, match=rf'{message}.* \(overwrite replaces the set\)'):
        export_set(evaluated(), tmp_path, 3)
    assert written == []
    assert len(export_set(evaluated(), tmp_path, 3, overwrite=True).entries) == 3
    assert (tmp_path / f'{INDEX}.damaged').read_text() == damage


def test_an_index_that_lists_a_file_twice_is_refused(tmp_path, written):
    export_set(evaluated(), tmp_path, 3)
    content = json.loads((tmp_path / INDEX).read_text())
    content['files'][1]['file'] = content['files'][0]['file']
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(snnet.SnnetError, match=f'is damaged: it lists {written[0]} more than once'):
        read_index(tmp_path)


def test_a_file_that_the_index_lists_and_the_folder_lacks_is_named(tmp_path, written):
    export_set(evaluated(), tmp_path, 3).entries[0].path.unlink()
    with pytest.raises(snnet.SnnetError, match=f'lacks {written[0]}, which its index.json lists'):
        read_index(tmp_path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A saved net of two small networks, evaluated as it were."""
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32)
    net.records = [dataclasses.replace(r, top1=float(10 + r.stitch)) for r in net.records]
    path = tmp_path_factory.mktemp('net')
    net.save_pretrained(path)
    return path


def command(folder: Path, *argv: object) -> None:
    run(parse(ExportSettings, [str(folder), *map(str, argv)], positional='folder'))


@pytest.mark.slow
def test_the_command_exports_the_choice_within_a_budget_beside_the_net(folder, capsys):
    net = snnet.StitchableNet.from_pretrained(folder)
    stitch = net.select_for_budget(net.records[1].flops)
    command(folder, '--budget', net.records[1].flops)
    path = folder / 'export' / f'stitch{stitch}.pt2'
    assert f'wrote {path}: {net.stitches[stitch]}; largest difference to eager' in capsys.readouterr().out
    before = path.read_bytes()
    with pytest.raises(snnet.SnnetError, match='already exists: replace it with --overwrite'):
        command(folder, '--stitch', stitch)
    assert path.read_bytes() == before
    command(folder, '--stitch', stitch, '--overwrite')


@pytest.mark.slow  # seconds
def test_the_command_exports_a_set(folder, tmp_path, written, capsys):
    command(folder, '--points', 2, '--output', tmp_path / 'set')
    out = capsys.readouterr().out
    assert all(str(entry.path) in out for entry in read_index(tmp_path / 'set').entries)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ((), 'choose one of: a stitch .*; none was given'),
        (('--stitch', 1, '--budget', 1e9), 'several were given'),
        (('--points', 3, '--params', 1e9), 'several were given'),
        (('--stitch', 99), 'stitch ids are the integers 0 to'),
        (('--stitch', 1, '--format', 'jit'), "to pt2 or onnx, not to 'jit'"),
        (('--stitch', 1, '--output', 'a.onnx', '--format', 'pt2'), 'has the suffix of another format than pt2'),
        (('--stitch', 1, '--output', 'nowhere/a.onnx'), "there is no folder 'nowhere' for --output nowhere/a.onnx"),
        (('--budget', 1), 'no stitch has flops <= 1'),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_in_a_sentence(argv, message, folder):
    with pytest.raises(snnet.SnnetError, match=message):
        command(folder, *argv)


def test_the_index_is_plain_json_for_any_server(tmp_path, written):
    net = evaluated()
    export_set(net, tmp_path, 3)
    row = json.loads((tmp_path / INDEX).read_text())['files'][0]
    record = net.frontier()[0]
    wanted = {'file': 'stitch0.pt2', 'stitch': 0, 'legs': record.legs, 'flops': record.flops, 'params': record.params}
    assert {**row, **wanted, 'top1': record.top1, 'difference': 1e-6} == row
    assert len(row['sha256']) == 64


@pytest.mark.parametrize('several_labels', [False, True])
def test_files_and_index_say_where_images_have_several_labels(several_labels, tmp_path, written):
    net = evaluated()
    net.several_labels = several_labels
    said = {'several_labels': True} if several_labels else {}
    for exported, stitch in ((net, 4), (net.extract(4), None)):
        about = PreparedStitch(exported, stitch, 'pt2', None).metadata
        assert {key: about[key] for key in about if key == 'several_labels'} == said
    about = export_set(net, tmp_path, 3).about
    assert {key: about[key] for key in about if key == 'several_labels'} == said


@pytest.mark.slow  # seconds
def test_mutated_indexes_are_read_or_refused_in_a_sentence_and_remove_no_other_file(tmp_path, written):
    folder, net = tmp_path / 'set', evaluated()
    export_set(net, folder, 3)
    content, rng = json.loads((folder / INDEX).read_text()), random.Random(3)
    other, kept = tmp_path / 'stitch9.pt2', folder / 'mine.txt'
    other.touch()
    kept.touch()
    maker = _StitchSet(net, reduce_frontier(net.frontier(), 3, 'flops'), folder, 'pt2', None)
    for name in ('../stitch9.pt2', str(other), '..', 'mine.txt'):
        (folder / INDEX).write_text(json.dumps({**content, 'files': [{**content['files'][0], 'file': name}]}))
        with contextlib.suppress(snnet.SnnetError):
            maker._earlier_rows(overwrite=True)
    refused = 0
    with nothing_outside(folder):
        for turn in range(400):
            text = mutated(content, rng)
            (folder / INDEX).write_bytes(text)
            refused += is_refused(lambda: read_index(folder))
            if turn % 2:
                (folder / PROGRESS).write_bytes(mutated(content['files'][0], rng))
            with contextlib.suppress(snnet.SnnetError):
                maker._earlier_rows(overwrite=True)
    assert refused > 100
    assert other.exists()
    assert kept.exists()
