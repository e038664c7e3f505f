"""The rooms of the package: who imports whom, wherever the import stands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / 'snnet'
FILES = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted(PACKAGE.rglob('*.py'))
}
MODULES = [name for name in FILES if name != '__init__']
ROOMS = [
    'errors',
    'utils',
    'config',
    'anchors',
    'stitching',
    'budget',
    'reparam',
    'saving',
    'net',
    'calibration',
    'profiling',
    'data',
    'reassembly',
    'evaluation',
    'training',
    'exporting',
    'serve',
    'cli',
]
"""From the ground up: a module imports from its own room and from those before it."""
BY_NAME = {
    'utils.lazy': 'the modules of a package, when they are first used',
    'cli.main': 'the file of a command, in the same folder',
    'exporting.formats': 'an extra such as onnx',
    'utils.plugins': 'a file that the user names',
    'anchors.tracing.stretch_code': "what a recorded network's own code needs",
}
"""Modules that import others by a name that is made while they run, and what these are."""


def module_of(dotted: str) -> str | None:
    """The module of the package that a dotted name such as `snnet.net.create.load_zoo` leads to, without `snnet.`"""
    parts = dotted.split('.')
    if parts[0] != 'snnet':
        return None
    for stop in range(len(parts), 1, -1):
        if (name := '.'.join(parts[1:stop])) in FILES:
            return name
    return '__init__'


def absolute_names(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Dotted names of what a statement imports, such as `snnet.net.create.load_zoo` or `torch.nn`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = []
    if node.level:
        here = ['snnet'] if module == '__init__' else ['snnet', *module.split('.')]
        up = node.level - (FILES[module].name == '__init__.py')
        base = here[: len(here) - up]
    base += node.module.split('.') if node.module else []
    return ['.'.join([*base, alias.name]) for alias in node.names]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding='utf-8'))


def imported_names(module: str) -> set[str]:
    """What a module imports: at its top, inside functions, for types only, and by a name in quotes."""
    return names_in(tree_of(module), module)


def names_in(tree: ast.Module, module: str) -> set[str]:
    nodes = list(ast.walk(tree))
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    found = {text for text in texts if re.fullmatch(r'snnet(\.\w+)+', text) and module_of(text) != '__init__'}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(absolute_names(module, node))
    return found


@cache
def imported_modules(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    names = {module_of(name) for name in imported_names(module)}
    return {name for name in names if name not in (None, '__init__', module)}


def room_of(module: str) -> str:
    return module.split('.')[0]


def test_the_walk_sees_imports_of_all_kinds():
    assert {'anchors.anchor', 'budget.record', 'stitching.stitch'} <= imported_modules('net.measured_net')
    assert 'snnet.net.stitchable_net.StitchableNet' in imported_names('cli.info')
    assert 'net.stitchable_net' in imported_modules('cli.info')  # inside a function, and for types
    assert module_of('snnet.reassembly.join_layer.JoinLayer') == 'reassembly.join_layer'
    assert module_of('snnet.reassembly.JoinLayer') == 'reassembly'
    assert module_of('torch.nn') is None


def test_the_walk_sees_imports_by_name():
    for code in ('load("snnet.cli.main")', 'from importlib import import_module as f\nf("snnet.cli.main")'):
        assert 'snnet.cli.main' in names_in(ast.parse(code), 'utils.files')
    assert imports_by_name(ast.parse('import importlib\nimportlib.import_module(a)'))
    assert imports_by_name(ast.parse('from importlib import import_module'))
    assert imports_by_name(ast.parse('__import__("a")'))
    assert not imports_by_name(ast.parse('from importlib.util import find_spec\nfind_spec("a")'))


def imports_by_name(tree: ast.Module) -> bool:
    """Whether code can import what no statement names."""
    names = {getattr(node, field, None) for node in ast.walk(tree) for field in ('id', 'attr', 'name')}
    return bool(names & {'import_module', '__import__', 'exec_module'})


def test_only_these_modules_import_by_name():
    assert {name for name in MODULES if imports_by_name(tree_of(name))} == set(BY_NAME)


def test_every_module_has_a_room():
    assert {module for module in MODULES if room_of(module) not in ROOMS} == set()


def test_a_module_imports_from_its_own_room_and_earlier_ones_only():
    floor = {room: at for at, room in enumerate(ROOMS)}
    pairs = {(module, name) for module in MODULES for name in imported_modules(module)}
    assert {(module, name) for module, name in pairs if floor[room_of(name)] > floor[room_of(module)]} == set()


def test_no_imports_go_round_in_a_circle():
    imported = {module: imported_modules(module) for module in MODULES}
    assert {(a, b) for a, names in imported.items() for b in names if a in reached(imported, b)} == set()


def reached(imported: dict[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports, directly or through others."""
    found, todo = set(), [start]
    while todo:
        new = imported[todo.pop()] - found
        found |= new
        todo += new
    return found


@pytest.mark.parametrize('room', [module for module in MODULES if FILES[module].name == '__init__.py'])
def test_every_room_says_its_purpose(room):
    docstring = ast.get_docstring(tree_of(room))
    assert docstring
    assert 20 < len(docstring.splitlines()[0]) <= 120


def test_the_package_has_at_most_twenty_entries():
    entries = {path.name for path in PACKAGE.iterdir()} - {'__pycache__'}
    assert entries - {'__init__.py', 'py.typed'} == {room if room != 'errors' else 'errors.py' for room in ROOMS}
    assert len(entries) <= 20


def test_no_two_classes_share_a_name():
    classes = (node for name in FILES for node in ast.walk(tree_of(name)) if isinstance(node, ast.ClassDef))
    names = Counter(node.name.lstrip('_') for node in classes)
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.slow
def test_importing_the_package_prints_nothing_and_changes_nothing():
    code = (
        'import logging, torch; seed = torch.initial_seed()\n'
        'import importlib, pkgutil, snnet\n'
        '[importlib.import_module(m.name) for m in pkgutil.walk_packages(snnet.__path__, "snnet.")]\n'
        'import sys\n'
        "assert not {'matplotlib', 'sklearn', 'onnx', 'onnxruntime', 'fastapi', 'uvicorn', 'ray'} & set(sys.modules)\n"
        'assert not logging.getLogger().handlers and not logging.getLogger("snnet").handlers\n'
        'assert torch.initial_seed() == seed'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
