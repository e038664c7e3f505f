from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
"""From the ground up: a module imports from earlier rooms, and from its own."""

RANK = {name: rank for rank, name in enumerate(ROOMS)}


def at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when the module is imported by Python rather than by a type checker."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            typing_only = isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
            yield from at_import([] if typing_only else node.body)
            for part in ('orelse', 'finalbody'):
                yield from at_import(getattr(node, part, []))
            for handler in getattr(node, 'handlers', []):
                yield from at_import(handler.body)


def absolute(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Dotted names of what a statement imports, such as `snnet.line` or `torch.nn`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module or '']
    here = ['snnet', *module.split('.')] if module != '__init__' else ['snnet', '']
    is_package = FILES[module].name == '__init__.py' and module != '__init__'
    base = here[: len(here) - node.level + is_package]
    if node.module:
        return ['.'.join([*base, node.module])]
    return ['.'.join([*base, alias.name]) for alias in node.names]


def imports(module: str, everywhere: bool = False) -> set[str]:
    tree = ast.parse(FILES[module].read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return {name for node in (found if everywhere else at_import(tree.body)) for name in absolute(module, node)}


def inside(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    names = {name.removeprefix('snnet.') for name in imports(module) if name.split('.')[0] == 'snnet'}
    assert names <= set(MODULES), f'{module} imports {names - set(MODULES)} from the package'
    return names


def room(module: str) -> str:
    return module.split('.')[0]


def test_the_walk_sees_imports():
    assert {'anchors.anchor', 'net.pretrained', 'budget.frontier'} <= inside('net.stitchable_net')
    assert {'errors', 'anchors.anchor', 'anchors.adapters.swin'} <= inside('anchors.registry')
    assert inside('anchors.adapters.swin') == {'anchors.anchor'}
    assert 'net.stitchable_net' not in inside('net.pretrained')


@pytest.mark.parametrize('module', MODULES)
def test_a_module_imports_from_earlier_rooms_only(module):
    assert room(module) in RANK, f'{module} has no room yet: give it one in {Path(__file__).name}'
    wrong = [n for n in inside(module) if RANK[room(n)] >= RANK[room(module)] and room(n) != room(module)]
    assert wrong == []


def test_no_imports_go_round_in_a_circle():
    order = list(TopologicalSorter({module: inside(module) for module in MODULES}).static_order())
    assert order.index('anchors.anchor') < order.index('net.stitchable_net') < order.index('net.create')


def test_only_the_flops_of_anchors_import_fvcore():
    assert [m for m in FILES if any(name.split('.')[0] == 'fvcore' for name in imports(m, True))] == ['anchors.flops']


@pytest.mark.parametrize(
    'module',
    [
        'budget.frontier',
        'budget.select',
        'budget.latency_table',
        'stitching.stitch',
        'errors',
        'exporting.set_index',
        'serve.controller',
    ],
)
def test_the_plain_modules_reach_no_torch(module):
    reached, todo = set(), [module]
    while todo:
        current = todo.pop()
        reached |= {name.split('.')[0] for name in imports(current, True)}
        todo += inside(current)
    assert not reached & {'torch', 'timm', 'numpy', 'einops'}


def test_importing_the_package_prints_nothing_and_loads_no_extra():
    code = (
        'import logging, sys, torch; seed = torch.initial_seed(); import snnet; '
        "assert not {'matplotlib', 'sklearn'} & set(sys.modules); "
        'assert not logging.getLogger().handlers and not logging.getLogger("snnet").handlers; '
        'assert torch.initial_seed() == seed'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_everything_public_is_there_and_documented():
    import snnet

    missing = [name for name in snnet.__all__ if not getattr(snnet, name).__doc__]
    assert missing == []
