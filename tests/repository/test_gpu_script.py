from __future__ import annotations

import importlib
import json
import multiprocessing
import time

import pytest
import torch

import snnet
from benchmarks.gpu.book import Book
from benchmarks.gpu.cifar_images import augmented, batches, generated
from benchmarks.gpu.part import PARTS, Options, Part, Report, run_part
from benchmarks.gpu.pieces import save_in_pieces
from tests.helpers.families import images, shared_net
from tests.helpers.pretend_gpu import pretended_gpu
from tests.helpers.scripts import run_script


@pytest.mark.slow  # waits for a limit to pass
def test_a_part_that_fails_hangs_or_dies_is_noted_and_the_others_keep_what_they_found(tmp_path, capsys):
    book, options = Book(tmp_path, 'the command'), Options('cpu', True, str(tmp_path), '')
    begin = time.monotonic()
    limits = {'good': 60, 'raising': 60, 'endless': 3, 'dying': 60}
    for number, (name, limit) in enumerate(limits.items(), start=1):
        run_part(number, Part(name, 1, 'tests.helpers.gpu_parts', name), options, book, limit)
        assert len(json.loads((tmp_path / 'gpu.json').read_text())['parts']) == number
    assert time.monotonic() - begin < 120
    parts = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert [part['state'] for part in parts] == ['done', 'failed', 'cut', 'failed']
    assert parts[0]['notes'] == ['the impossible failed: ValueError: two', 'still here']
    assert parts[1]['sentence'] == 'MemoryError: no room'
    assert 'exceeded its limit of 3 s' in parts[2]['sentence']
    assert 'exit code 9' in parts[3]['sentence']
    assert parts[1]['tables'] == parts[2]['tables'] == {'numbers': [{'one': 1}]}
    text = (tmp_path / 'gpu.md').read_text()
    assert '| images per s | way |\n|---|---|\n| 12346 | a/b |' in text
    assert book.failures == 3
    assert 'part 3 cut' in capsys.readouterr().out


@pytest.mark.slow  # waits until the part runs
def test_an_interrupted_run_ends_its_part_and_keeps_what_it_found(tmp_path):
    book, options = Book(tmp_path, 'the command'), Options('cpu', True, str(tmp_path), '')
    add = book.add

    def interrupting(entry):
        add(entry)
        if 'row' in entry:
            raise KeyboardInterrupt

    book.add = interrupting
    with pytest.raises(KeyboardInterrupt):
        run_part(1, Part('endless', 1, 'tests.helpers.gpu_parts', 'endless'), options, book, 60)
    (part,) = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert part['state'] == 'cut'
    assert part['sentence'] == 'The run was ended from outside; what it had found by then is here.'
    assert part['tables'] == {'numbers': [{'one': 1}]}
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu_with_tiny_networks(tmp_path):
    """Minutes: it is the very script that runs on a GPU."""
    options = ['--tiny', '--device', 'cpu', '--minutes', '30', '--out', tmp_path]
    done = run_script('benchmarks/gpu/__main__.py', *options, check=False)
    parts = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert done.returncode == 0, [(part['sentence'], part['notes']) for part in parts]
    assert [(part['title'], part['state']) for part in parts] == [(part.title, 'done') for part in PARTS]
    assert [note for part in parts for note in part['notes'] if ' failed: ' in note] == []
    tables = {title for part in parts for title in part['tables']}
    assert len(tables) >= 15
    assert len(list(tmp_path.glob('curve_*.svg'))) == 4
    assert {path.name for path in (tmp_path / 'net_ours').iterdir()} >= {'config.json', 'model.safetensors.00'}


class Notebook:
    """Takes in what a part reports."""

    def __init__(self) -> None:
        self.entries = []
        self.send = self.entries.append


CANNOT_BE_PRETENDED = ('plain DDP', 'compiled')
"""What asks the driver itself: DDP, and the compiler."""


@pytest.mark.slow  # every operation passes through Python
@pytest.mark.parametrize('part', PARTS[1:], ids=lambda part: part.module.rpartition('.')[2])
def test_the_lines_for_a_gpu_run_on_a_pretended_one(tmp_path, part):
    """Tensors on two devices at once, and what a CUDA graph cannot capture, fail there as on CUDA."""
    book = Notebook()
    with pretended_gpu():
        run = getattr(importlib.import_module(part.module), part.function)
        run(Options('cuda', True, str(tmp_path), ''), Report(book, time.monotonic() + 600))
    failed = [entry['note'] for entry in book.entries if ' failed: ' in entry.get('note', '')]
    assert [note for note in failed if not any(what in note for what in CANNOT_BE_PRETENDED)] == []
    assert sum('row' in entry for entry in book.entries) > 5


def test_bad_arguments_of_the_script_end_with_a_sentence(tmp_path):
    for options, sentence in (
        (['--data', tmp_path / 'none'], 'is not a folder'),
        (['--minutes', '0'], 'is a positive number'),
    ):
        done = run_script('benchmarks/gpu/__main__.py', '--out', tmp_path / 'out', *options, check=False)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert not (tmp_path / 'out').exists()


def test_a_net_in_pieces_is_whole_again_once_they_are_joined(tmp_path):
    net = shared_net('vit')
    pieces = save_in_pieces(net, tmp_path, largest=20_000)
    assert len(pieces) > 2
    assert max(piece.stat().st_size for piece in pieces) == 20_000
    assert next(net.parameters()).dtype == torch.float32
    (tmp_path / 'model.safetensors').write_bytes(b''.join(piece.read_bytes() for piece in sorted(pieces)))
    loaded = snnet.StitchableNet.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert all(torch.equal(value.half(), state[name].half()) for name, value in net.state_dict().items())
    assert loaded(images(32).to(next(loaded.parameters()).dtype), stitch=3).isfinite().all()


def test_batches_of_the_family_are_augmented_images_each_once_and_the_same_for_the_same_purpose():
    train = generated(40, 0, torch.device('cpu'))
    train.classes[:] = torch.arange(40)
    first, again = ([next(stream) for _ in range(5)] for stream in (batches(train, 8, 'a'), batches(train, 8, 'a')))
    assert all(torch.equal(x, y) for one, two in zip(first, again, strict=True) for x, y in zip(one, two, strict=True))
    assert sorted(torch.cat([classes for _, classes in first]).tolist()) == list(range(40))
    x = augmented(train.images, torch.Generator().manual_seed(0))
    assert x.shape == train.images.shape
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert float((x - train.images).abs().mean()) > 0.01
