"""The code and the commands of the documentation run.

A page shows what a user would write: pretrained DeiTs, ImageNet, eight GPUs. `STAND_INS` and `SMALLER` say what runs
here instead. A block that is not run says why, in a comment before it: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import snnet
from snnet.config.parse import parse
from snnet.evaluation.hits import write_hits
from snnet.net.hardware import setup_of
from snnet.training.train_settings import TrainSettings
from snnet.utils.plugins import import_plugins
from tests.helpers.documents import PAGES, ROOT, blocks, commands, name
from tests.helpers.families import family_net, images
from tests.helpers.runs import write_images
from tests.helpers.scripts import run_script

STAND_INS = {
    '--from deit_tiny,deit_small,deit_base': '--from NET',
    'deit_tiny,deit_small,deit_base': 'digits_small,digits_medium,digits_large',
    'pretrained=True': 'pretrained=False',
    '/imagenet': 'images',
    'my_images': 'images',
    'split photos': 'split images/train',
    '--grow-every 500': '--grow-every 1',
    '--images 5000': '--images 6',
    'batches, minutes=10)': 'batches, steps=1)',
    '--recipe adapt': '--recipe adapt --adapt-steps 1 --adapt-samples 12',
}
"""What pages write, and what runs here in its place: networks of 10 to 48 channels, random weights and images."""

SMALLER = {
    'train.py': '--no-pretrained --num-classes 3 --batch-size 8 --workers 0 --epochs 1 --warmup-epochs 0 --teacher '
    'none --init-samples 8 --recalibrate 8 --max-bad-images 0.1 --plugin examples/digits.py',
    'eval_stitches.py': '--workers 0 --batch-size 8 --plugin examples/digits.py',
    'reassemble.py': '--no-pretrained --images 8 --batch-size 8 --init-samples 8 --workers 0',
    'snnet profile': '--minutes 0.02 --stitches 0-2 --no-predict --plugin examples/digits.py',
    'snnet export': '--plugin examples/digits.py',
    'snnet adapt': '--steps 1 --samples 12 --workers 0 --plugin examples/digits.py',
    'snnet keep': '--stitches 3,4 --plugin examples/digits.py',
    'snnet info': '--plugin examples/digits.py',
    'snnet predict': '--plugin examples/digits.py',
    'snnet report': '--plugin examples/digits.py',
    'snnet simulate': '--seconds 1 --loads 0.5',
}
"""Flags added at the end of a command, where they override earlier ones."""

SLOW = {('docs/deploy.md', 'python'): pytest.mark.slow}
"""This one traces and quantizes; commands are slow on every page."""


def a_loop() -> dict[str, Any]:
    model = timm.create_model('test_resnet', num_classes=3)
    loader = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    return {'model': model, 'optimizer': torch.optim.SGD(model.parameters(), 0.01), 'loader': loader}


def a_network_of_another_class() -> dict[str, Any]:
    class Block(nn.Module):
        def __init__(self, width: int, stride: int) -> None:
            super().__init__()
            self.downsample = nn.Conv2d(width // stride, width, stride, stride)
            self.blocks = nn.Sequential(*(nn.Conv2d(width, width, 3, 1, 1) for _ in range(2)))

    class MyNetwork(nn.Module):
        num_classes = 3

        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, width, 4, 4)
            self.stages = nn.ModuleList([Block(2 * width, 2), Block(4 * width, 2)])
            self.classifier = nn.Linear(4 * width, 3)

        def forward_head(self, x: Tensor) -> Tensor:
            return self.classifier(x.mean((2, 3)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for stage in self.stages:
                x = stage.blocks(stage.downsample(x))
            return self.forward_head(x)

    return {'MyNetwork': MyNetwork}


def hits() -> dict[str, Any]:
    Path('NET/evaluation').mkdir()
    right = {stitch: np.arange(6) % 5 < 3 + stitch % 2 for stitch in (7, 24)}
    write_hits(Path('NET/evaluation/hits.safetensors'), right, of='these images')
    return {}


def a_net_with_batchnorm() -> dict[str, Any]:
    return {'net': family_net('resnet'), 'batches': [images(64, 8)]}


def exported_set() -> dict[str, Any]:
    snnet.export_set(snnet.StitchableNet.from_pretrained('NET'), 'set', 2)
    return {}


GIVEN = {
    'docs/add_a_family.md': a_network_of_another_class,
    'docs/deploy.md': exported_set,
    'docs/evaluate.md': hits,
    'docs/grow.md': a_loop,
    'docs/train.md': a_net_with_batchnorm,
}
"""Names that the Python of a page takes for granted besides `net`, `x`, `images` and `batches`."""


def pages_with(language: str) -> list[Any]:
    """The pages with blocks of a language that are run, as parameters of a test."""
    pages = [page for page in PAGES if any(b.language == language and not b.not_run for b in blocks(page))]
    return [pytest.param(page, id=name(page), marks=SLOW.get((name(page), language), ())) for page in pages]


def replaced(text: str) -> str:
    for shown, run in STAND_INS.items():
        text = text.replace(shown, run)
    return text


@pytest.fixture(scope='module')
def saved_net(tmp_path_factory) -> Path:
    """The folder of a net of the digits family with made-up accuracies and latencies; nobody changes it."""
    import_plugins([str(ROOT / 'examples' / 'digits.py')])
    net = snnet.create_stitchable_net(STAND_INS['deit_tiny,deit_small,deit_base'], pretrained=False, num_classes=3)
    net.records = [replace(record, top1=50 + record.flops / 1e5, n=1000) for record in net.records]
    folder = tmp_path_factory.mktemp('docs') / 'net'
    net.save_pretrained(folder)
    (folder / 'profiles').mkdir()
    for batch in (1, 8):
        rows = {r.stitch: snnet.Latency(1 + batch * r.flops / 1e6, 1, 2, 4 * r.params) for r in net.records}
        table = snnet.LatencyTable(setup_of(net), batch, net.fingerprint, rows)
        (folder / 'profiles' / table.file_name).write_text(table.to_json())
    return folder


@pytest.fixture
def checkout(tmp_path, monkeypatch, saved_net) -> Path:
    """A folder like a clone, with images and a net where the pages have theirs, that commands may write to."""
    for path in ROOT.iterdir():
        if path.name not in {'output', '.git'}:
            (tmp_path / path.name).symlink_to(path)
    write_images(tmp_path / 'images' / 'train', 3, 6, size=8)
    write_images(tmp_path / 'images' / 'validation', 3, 2, size=8)
    shutil.copytree(saved_net, tmp_path / 'NET')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.quick('docs/evaluate.md', 'docs/predict.md', 'docs/grow.md', 'docs/serve.md')
@pytest.mark.filterwarnings('ignore:no stitch within the budget:UserWarning')  # pages choose before they evaluate
@pytest.mark.filterwarnings('ignore:The .grad attribute:UserWarning')  # torch.compile looks at every input's
@pytest.mark.parametrize('page', pages_with('python'))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, checkout):
    net = snnet.StitchableNet.from_pretrained('NET')
    x = torch.zeros(2, *net.input_size)
    batches = [torch.randn(8, *net.input_size) for _ in range(2)]
    names = {'__name__': 'page', 'snnet': snnet, 'torch': torch, 'net': net, 'x': x, 'images': x, 'batches': batches}
    names |= GIVEN.get(name(page), dict)()
    with torch.enable_grad():
        for block in blocks(page):
            if block.language == 'python' and not block.not_run:
                exec(compile('\n' * block.line + replaced(block.text), str(page), 'exec'), names)


@pytest.mark.slow
@pytest.mark.parametrize('page', pages_with('bash'))
def test_the_commands_of_a_page_run_from_top_to_bottom(page, checkout):
    for block in blocks(page):
        if block.language == 'bash' and not block.not_run:
            for words in commands(block._replace(text=replaced(block.text))):
                script = next(word for word in words if word == 'snnet' or word.endswith('.py'))
                given = words[words.index(script) + 1 :]
                program = f'snnet {given[0]}' if script == 'snnet' else script
                given += SMALLER.get(program, '').split()
                ranks = 2 if words[0] == 'torchrun' else 1
                done = run_script(script, *given, check=False, ranks=ranks, folder=checkout)
                assert done.returncode == 0, f'line {block.line}: {" ".join(words)}\n{done.stderr[-3000:]}'


@pytest.mark.parametrize('block', [b for b in blocks(ROOT / 'docs' / 'train.md') if b.language == 'yaml'])
def test_the_files_on_the_training_page_hold_settings(block, tmp_path):
    (tmp_path / 'run.yaml').write_text(block.text)
    assert parse(TrainSettings, ['--config', str(tmp_path / 'run.yaml')]).optimizer.weight_decay == 0.05
