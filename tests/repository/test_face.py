"""The public face: which names there are, and what importing them loads."""

from __future__ import annotations

import ast
import inspect
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import snnet

PACKAGE = Path(snnet.__file__).parent
NAMES = {
    'Anchor',
    'Boundary',
    'BudgetInfeasible',
    'CannotStitch',
    'ForeignTable',
    'InvalidBudget',
    'Latency',
    'LatencyTable',
    'Leg',
    'LostRanks',
    'MissingExtra',
    'NoWeights',
    'Record',
    'Selection',
    'Setup',
    'SnnetError',
    'Source',
    'Stage',
    'Stitch',
    'StitchableNet',
    'UnknownStitch',
    'adapt',
    'as_anchor',
    'compile_blocks',
    'create_stitchable_net',
    'export',
    'export_set',
    'fit_embeddings',
    'frontier',
    'initialise',
    'initialize',
    'kaiming',
    'keep_stitches',
    'list_stitches',
    'load_official',
    'measure_costs',
    'profile',
    'recalibrate',
    'register_adapter',
    'select',
    'warm_up',
}
PACKAGES = ['.'.join(path.parent.relative_to(PACKAGE.parent).parts) for path in sorted(PACKAGE.rglob('__init__.py'))]
HEAVY = {'torch', 'torchvision', 'timm', 'fvcore', 'numpy', 'einops', 'matplotlib', 'sklearn'}


def fresh(code: str) -> set[str]:
    """The modules that a new process has loaded after `code`, which must print nothing."""
    code += '\nimport sys; print(*sys.modules)'
    command = [sys.executable, '-W', 'ignore', '-c', code]  # timm makes torch warn
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert done.stdout.count('\n') == 1
    return set(done.stdout.split())


def modules_in(package: str) -> set[str]:
    folder = PACKAGE.parent.joinpath(*package.split('.'))
    inside = {path.stem for path in folder.glob('*.py')} | {path.parent.name for path in folder.glob('*/__init__.py')}
    return inside - {'__init__'}


def exports(package: str) -> list[str]:
    return getattr(import_module(package), '__all__', [])


def test_the_public_names_are_these_and_each_is_documented():
    assert set(snnet.__all__) == NAMES
    assert [name for name in NAMES if not getattr(snnet, name).__doc__] == []
    assert snnet.initialise is snnet.initialize


@pytest.mark.parametrize('package', [package for package in PACKAGES if exports(package)])
def test_every_public_method_is_documented(package):
    """Docstrings are due where users read them; ruff asks only for those of modules and packages."""
    bare = []
    for kind in (getattr(import_module(package), name) for name in exports(package)):
        members = vars(kind).items() if isinstance(kind, type) else ()
        bare += [
            f'{kind.__name__}.{name}'
            for name, member in members
            if not name.startswith('_')
            and (inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod))
            and not inspect.getdoc(getattr(kind, name))
        ]
    assert bare == []


@pytest.mark.parametrize('package', PACKAGES)
def test_a_package_shows_its_modules_and_its_exported_names_and_nothing_else(package):
    assert set(dir(import_module(package))) == modules_in(package) | set(exports(package))
    assert exports(package) == sorted(exports(package))


@pytest.mark.parametrize('package', PACKAGES)
def test_no_exported_name_hides_a_module(package):
    assert set(exports(package)) & modules_in(package) == set()


@pytest.mark.parametrize('package', PACKAGES)
def test_every_exported_name_and_every_module_is_there(package):
    for name in dir(import_module(package)):
        assert getattr(import_module(package), name) is not None


@pytest.mark.parametrize('package', [package for package in PACKAGES if exports(package)])
def test_a_type_checker_sees_the_same_names_from_the_same_modules(package):
    tree = ast.parse(PACKAGE.parent.joinpath(*package.split('.'), '__init__.py').read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in branch.body for alias in node.names if node.module}
    table = next(node for node in ast.walk(branch) if isinstance(node, ast.Dict))
    loaded = {name: module for module, names in ast.literal_eval(table).items() for name in names}
    assert typed == loaded
    assert set(loaded) == set(exports(package))


def test_an_unknown_name_is_an_attribute_error_that_suggests_a_near_one():
    with pytest.raises(AttributeError, match="module 'snnet' has no attribute 'StichableNet'") as caught:
        snnet.StichableNet  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ('StichableNet', snnet)


def test_importing_the_package_loads_only_itself_and_the_registry_of_makers():
    loaded = fresh('import snnet; assert snnet.__version__')
    itself = {'snnet', 'snnet.utils', 'snnet.utils.lazy'}
    registry = {'snnet.saving', 'snnet.saving.anchor_makers', 'snnet.reassembly', 'snnet.reassembly.config_name'}
    assert {name for name in loaded if name.split('.')[0] == 'snnet'} == itself | registry
    assert loaded & HEAVY == set()


def test_what_needs_no_torch_loads_none():
    used = ['budget.' + name for name in sorted(modules_in('snnet.budget'))]
    used += ['errors', 'stitching.stitch', 'exporting.set_index']
    used += ['select', 'frontier', 'Record', 'LatencyTable', 'Stitch', 'SnnetError', 'cli.main', 'config.parse']
    code = 'import snnet\n' + '\n'.join(f'snnet.{name}' for name in used)
    assert fresh(code) & HEAVY == set()


def test_the_controller_loads_nothing_heavier_than_numpy():
    code = 'import snnet\n' + '\n'.join(f'snnet.serve.{name}' for name in ('Controller', 'decide', 'Choices'))
    assert fresh(code) & HEAVY <= {'numpy'}


@pytest.mark.slow  # a few seconds
def test_a_plain_import_reaches_every_room():
    loaded = fresh('import snnet\nassert snnet.net.cuda_graphs.GraphedStitches and snnet.reassembly.Reassembled')
    assert {'torch', 'snnet.net.cuda_graphs', 'snnet.reassembly.reassembled'} <= loaded


@pytest.mark.parametrize('command', [[], ['profile'], ['export'], ['simulate'], ['info']])
def test_help_is_printed_at_once(command):
    code = f"""
import sys
from snnet.cli.main import main
try:
    main({[*command, '--help']})
finally:
    assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(' '.join(['usage: snnet', *command]))
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # 0.2 s on an idle machine
