"""What the documentation names exists: programs, files, flags, links, pages and dotted names."""

from __future__ import annotations

import ast
import io
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache

import pytest

from snnet.cli.main import COMMANDS, main as snnet_command
from tests.helpers.documents import PAGES, ROOT, blocks, commands, inline_code, links, name, prose
from tools.draw_imports import DRAWING, draw, imports_of_rooms

TEXTS = {'', 'text', 'yaml', 'json', 'make'}
"""Languages of blocks that hold nothing to run."""

EVERY_PAGE = pytest.mark.parametrize('page', PAGES, ids=[name(page) for page in PAGES])


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
    programs += [('tools.faults',), ('benchmarks.gpu',), ('snnet',)]
    return frozenset().union(*(flags_of(*program) for program in programs))


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
        if re.fullmatch(r'\w+\.py', code):
            assert code in python_files(), f'there is no {code}'


@cache
def python_files() -> frozenset[str]:
    folders = ('snnet', 'tests', 'tools', 'examples', 'benchmarks')
    paths = [*ROOT.glob('*.py'), *(path for folder in folders for path in (ROOT / folder).rglob('*.py'))]
    return frozenset(path.name for path in paths)


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


@pytest.mark.slow
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


def test_the_drawing_of_the_imports_shows_those_of_today():
    drawing = draw(imports_of_rooms())
    assert DRAWING.read_text(encoding='utf-8') == drawing, 'run python -m tools.draw_imports'


def test_hosted_ci_runs_every_python_that_setup_promises():
    promised = re.findall(
        r'Programming Language :: Python :: (3\.\d+)$', (ROOT / 'setup.cfg').read_text(), re.MULTILINE
    )
    matrix = re.search(r'^ +python: \[(.+)\]$', (ROOT / '.github/workflows/ci.yml').read_text(), re.MULTILINE)
    assert re.findall(r'[\d.]+', matrix[1]) == promised
