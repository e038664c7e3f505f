"""What setup.cfg declares is what the code needs."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snnet

ROOT = Path(__file__).parents[2]
MODULES = {
    'Pillow': 'PIL',
    'PyYAML': 'yaml',
    'onnx-ir': 'onnx_ir',
    'python-multipart': 'python_multipart',
    'scikit-learn': 'sklearn',
}
"""Distributions whose module has another name."""
OPTIONAL = {
    **dict.fromkeys(('onnx_ir', 'onnxruntime', 'onnxscript'), 'export'),
    **dict.fromkeys(('fastapi', 'httptools', 'prometheus_client', 'python_multipart'), 'serve'),
    **dict.fromkeys(('starlette', 'uvicorn', 'uvloop'), 'serve'),
    'matplotlib': 'plot',
    'pyarrow': 'parquet',
    'ray': 'ray',
    'tensorboard': 'tensorboard',
    'transformers': 'transformers',
    'wandb': 'wandb',
}
"""Modules that the package imports inside functions, and the extra that installs each."""


@pytest.fixture(scope='module')
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    return parser


def modules_of(requirements: str) -> set[str]:
    """Modules of requirements such as 'torch>=2.9'."""
    names = (re.split(r'[\[<>=!~; ]', line)[0] for line in requirements.split('\n') if line)
    return {MODULES.get(name, name) for name in names}


def imported(*places: str) -> set[str]:
    """Modules from elsewhere that files import."""
    files = [file for place in places for file in ROOT.glob(place)]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level and node.module}
    scripts = {file.stem for place in ('*.py', 'examples/*.py', 'benchmarks/*.py') for file in ROOT.glob(place)}
    own = {'snnet', 'tests', 'tools', 'benchmarks'} | scripts
    return {name.split('.')[0] for name in names} - set(sys.stdlib_module_names) - own


@pytest.mark.slow  # seconds
def test_the_package_imports_what_it_declares_and_nothing_else(setup):
    needed, required = imported('snnet/**/*.py'), modules_of(setup['options']['install_requires'])
    assert needed - required == set(OPTIONAL)
    assert required - needed == set()
    for module, extra in OPTIONAL.items():
        assert module in modules_of(setup['options.extras_require'][extra])


@pytest.mark.slow  # a few seconds
def test_everything_else_imports_what_an_extra_declares(setup):
    extras = set().union(*(modules_of(text) for text in setup['options.extras_require'].values()))
    needed = imported('*.py', 'examples/*.py', 'benchmarks/**/*.py', 'tests/**/*.py', 'tools/**/*.py')
    assert needed - modules_of(setup['options']['install_requires']) <= extras


def test_every_extra_that_a_message_names_is_declared(setup):
    text = ''.join(file.read_text() for place in ('snnet/**/*.py', 'examples/*.py') for file in ROOT.glob(place))
    assert 'snnet[' not in text  # no such distribution: it is installed from a clone
    named = set(re.findall(r"'\.\[(\w+)\]'", text)) | {extra for _, extra in OPTIONAL.items()}
    assert named <= set(setup['options.extras_require'])


def test_the_versions_of_python_are_those_of_the_classifiers(setup):
    versions = re.findall(r'Python :: 3\.(\d+)', setup['metadata']['classifiers'])
    assert setup['options']['python_requires'] == f'>=3.{versions[0]}'
    assert [int(v) for v in versions] == list(range(int(versions[0]), int(versions[-1]) + 1))


def test_one_version_is_given_everywhere():
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'version: {snnet.__version__}\n' in citation
    assert f'## [{snnet.__version__}]' in (ROOT / 'CHANGELOG.md').read_text()


@pytest.mark.slow  # seconds
def test_a_built_package_holds_every_module_and_the_mark_of_types(tmp_path):
    code = 'from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))'
    tree = tmp_path / 'tree'
    tree.mkdir()
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'snnet'):
        (tree / name).symlink_to(ROOT / name)
    command = [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob('snnet-*.whl')
    held = set(
        subprocess.run([sys.executable, '-m', 'zipfile', '-l', wheel], capture_output=True, text=True).stdout.split()
    )
    found = [*(ROOT / 'snnet').rglob('*.py'), *(ROOT / 'snnet' / 'serve' / 'http' / 'assets').iterdir()]
    files = {str(file.relative_to(ROOT)) for file in found}
    assert files | {'snnet/py.typed'} <= held
