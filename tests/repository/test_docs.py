"""The documentation is true: its code runs, and its names, links, files, flags and commands exist.

A page shows what a user would write: pretrained DeiTs, ImageNet, eight GPUs. `STAND_INS` and `SMALLER` say what runs
here instead. A block that is not run says why, in a comment before it: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import ast
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import snnet
from snnet.cli.main import COMMANDS, main as snnet_command
from snnet.evaluation.hits import write_hits
from snnet.net.hardware import setup_of
from snnet.utils.plugins import import_plugins
from tests.helpers.documents import PAGES, ROOT, blocks, commands, inline_code, links, name, prose
from tests.helpers.families import family_net, images
from tests.helpers.runs import write_images
from tests.helpers.scripts import run_script

TEXTS = {'', 'text', 'yaml', 'json', 'make'}
"""Languages of blocks that hold nothing to run."""

STAND_INS = {
    'deit_tiny,deit_small,deit_base': 'digits_small,digits_medium,digits_large',
    'pretrained=True': 'pretrained=False',
    '/imagenet': 'images',
}
"""What pages write, and what runs here in its place: networks of 10 to 48 channels, random weights and images."""

SMALLER = {
    'train.py': '--no-pretrained --num-classes 3 --batch-size 4 --workers 0 --epochs 1 --warmup-epochs 0 --teacher '
    'none --init-samples 8 --recalibrate 8 --max-bad-images 0.1 --plugin examples/digits.py',
    'eval_stitches.py': '--workers 0 --batch-size 8 --plugin examples/digits.py',
    'reassemble.py': '--no-pretrained --images 8 --batch-size 8 --init-samples 8 --workers 0',
    'snnet': '--plugin examples/digits.py',
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


EVERY_PAGE = pytest.mark.parametrize('page', PAGES, ids=[name(page) for page in PAGES])


def replaced(text: str) -> str:
    for shown, run in STAND_INS.items():
        text = text.replace(shown, run)
    return text


@pytest.fixture(scope='module')
def saved_net(tmp_path_factory) -> Path:
    """The folder of a net of the digits family with made-up accuracies and latencies; nobody changes it."""
    import_plugins([str(ROOT / 'examples' / 'digits.py')])
    net = snnet.create_stitchable_net(STAND_INS['deit_tiny,deit_small,deit_base'], pretrained=False)
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


@pytest.mark.filterwarnings('ignore:no stitch within the budget:UserWarning')  # pages choose before they evaluate
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
                given = words[words.index(script) + 1 :] + SMALLER.get(script, '').split()
                ranks = 2 if words[0] == 'torchrun' else 1
                done = run_script(script, *given, check=False, ranks=ranks, folder=checkout)
                assert done.returncode == 0, f'line {block.line}: {" ".join(words)}\n{done.stderr[-3000:]}'


@EVERY_PAGE
def test_every_block_of_code_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in {'python', 'bash', *TEXTS}, f'line {block.line}: ```{block.language}'
        for words in commands(block) if block.language == 'bash' else ():
            runnable = words[0] in {'python', 'torchrun', 'snnet'}
            assert runnable or block.not_run, f'line {block.line}: say why `{" ".join(words)}` is not run'
    for line in prose(page).splitlines():
        assert not re.match(r' {4,}(python|snnet|torchrun|make|pip|import|from) ', line), f'fence this: {line}'


@cache
def flags_of(*program: str) -> frozenset[str]:
    """The flags that the help of a program lists: ('train.py',), ('snnet', 'export'), ('tools.faults',), ..."""
    if program[0] == 'snnet':
        text = printed(snnet_command, [*program[1:2], '--help'])
    elif 'add_argument(' in (source := (ROOT / source_of(program[0])).read_text()):
        text = ' '.join(re.findall(r"add_argument\(\s*'(--[\w-]+)'", source))
    elif re.search(r'\bparse\(', source):
        text = printed(show_help, program[0])
    else:
        text = ''
    return frozenset(re.findall(r'--[\w-]+', text))


def source_of(program: str) -> str:
    if program.endswith('.py'):
        return program
    path = program.replace('.', '/')
    return f'{path}/__main__.py' if (ROOT / path).is_dir() else f'{path}.py'


def show_help(script: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script, '--help'])
        runpy.run_path(str(ROOT / script), run_name='__main__')


def printed(function, *args) -> str:
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        function(*args)
    return out.getvalue()


def program_of(words: list[str]) -> tuple[str, ...]:
    """What a command runs: ('snnet', 'export'), ('train.py',), ('tools.faults',)."""
    if words[0] == 'snnet':
        return tuple(words[:2])
    if words[0] == 'python' and words[1] == '-m':
        return (words[2],)
    return (next(word for word in words if word.endswith('.py')),)


@EVERY_PAGE
def test_every_command_names_programs_files_and_flags_that_exist(page):
    for block in blocks(page):
        for words in commands(block) if block.language == 'bash' else ():
            check_command([word for word in words if not re.fullmatch(r'[A-Z_]+=.*', word)])


def check_command(words: list[str]) -> None:
    if words and words[0] == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    if not words or words[0] not in {'python', 'torchrun', 'snnet'} or words[1:3] == ['-m', 'pytest']:
        return
    program = program_of(words)
    if program[0] == 'snnet':
        assert program[1] in COMMANDS
    else:
        assert (ROOT / source_of(program[0])).is_file(), program
    flags = {word.partition('=')[0] for word in words if word.startswith('--')} - {'--nproc_per_node'}
    assert flags <= flags_of(*program), f'{" ".join(program)} has no {flags - flags_of(*program)}'
    for word in words:
        if re.fullmatch(r'(configs|examples)/[\w./]+', word):
            assert (ROOT / word).is_file(), word


@cache
def every_flag() -> frozenset[str]:
    scripts = [path for pattern in ('*.py', 'examples/*.py', 'benchmarks/*.py') for path in ROOT.glob(pattern)]
    programs = [(str(path.relative_to(ROOT)),) for path in scripts] + [('snnet', command) for command in COMMANDS]
    return frozenset().union(*(flags_of(*program) for program in [*programs, ('tools.faults',), ('snnet',)]))


@EVERY_PAGE
def test_every_flag_command_and_file_that_a_sentence_mentions_exists(page):
    for code in inline_code(page):
        if code.startswith(('pip ', 'git ', 'pytest ')):
            continue
        missing = set(re.findall(r'(?<![\w-])--[a-z][\w-]*', code)) - every_flag()
        assert not missing, f'`{code}`: no {missing}'
        if command := re.match(r'snnet ([a-z]+)', code):
            assert command[1] in COMMANDS, code
        if target := re.fullmatch(r'make ([\w-]+)', code):
            check_command(['make', target[1]])
        if re.fullmatch(r'(configs|examples|benchmarks|snnet|docs|tools|tests|\.ci|\.github)/[\w./*-]*', code):
            assert any(ROOT.glob(code.rstrip('/'))), f'there is no {code}'


@EVERY_PAGE
def test_every_link_leads_somewhere(page):
    for target in links(page):
        file, _, anchor = target.partition('#')
        assert (page.parent / file).exists() or file.startswith('reference/'), target
        if anchor and file.endswith('.md'):
            titles = re.findall(r'^#+ (.+)$', (page.parent / file).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles}, target


def dotted_names() -> set[str]:
    """Every name below `snnet` in the documentation, and in the docstrings of the package and its programs."""
    texts = [page.read_text(encoding='utf-8') for page in PAGES]
    for path in (
        *ROOT.glob('*.py'),
        *(p for d in ('snnet', 'examples', 'benchmarks', 'tools') for p in (ROOT / d).rglob('*.py')),
    ):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
        texts += [ast.get_docstring(node) or '' for node in nodes]
    return {found for text in texts for found in re.findall(r'(?<![\w./-])snnet(?:\.[A-Za-z_]\w*)+', text)}


def test_every_dotted_name_resolves_in_a_fresh_process():
    code = (
        'import functools, sys, snnet\n'
        'for name in sys.argv[1:]:\n'
        '    try: functools.reduce(getattr, name.split(".")[1:], snnet)\n'
        '    except AttributeError as error: print(name, "-", error)\n'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code, *sorted(dotted_names())]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (done.returncode, done.stdout) == (0, ''), done.stdout + done.stderr


def test_every_page_is_in_the_navigation_and_every_result_in_their_index():
    pages = {str(page.relative_to(ROOT / 'docs')) for page in PAGES if page.is_relative_to(ROOT / 'docs')}
    assert pages == set(re.findall(r'[\w/]+\.md\b', (ROOT / 'mkdocs.yml').read_text().partition('nav:\n')[2]))
    index = ROOT / 'docs' / 'results' / 'index.md'
    assert {path.name for path in index.parent.glob('*.md')} == {*links(index), 'index.md'}


def test_the_design_page_lists_every_room():
    listed = re.findall(r'^\| `snnet/(\w+)(?:/|\.py)` \|', (ROOT / 'docs' / 'design.md').read_text(), re.MULTILINE)
    assert set(listed) == {path.parent.name for path in ROOT.glob('snnet/*/__init__.py')} | {'errors'}
