"""The docstrings of the package describe parameters that exist: the API reference is made of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = 'Args|Returns|Raises|Attributes|Yields'


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding='utf-8')) for path in sorted((ROOT / 'snnet').rglob('*.py'))}


@cache
def classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def described(docstring: str) -> set[str]:
    """The names in the section `Args`, several of them in 'window, step: ...' as well."""
    section = re.search(rf'^Args:\n(.*?)(?=^({SECTIONS}):|\Z)', docstring, re.DOTALL | re.MULTILINE)
    names = re.findall(r'^    ([\w*][\w, *]*):', section[1] if section else '', re.MULTILINE)
    return {name.strip().lstrip('*') for group in names for name in group.split(',')}


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    args = node.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, [args.vararg, args.kwarg])]
    return {arg.arg for arg in every}


def signatures(tree: ast.Module) -> Iterator[tuple[str, str, set[str]]]:
    """Name, docstring and parameters of every function, and of every class with those of its constructor."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, ast.get_docstring(node) or '', parameters(node)
        elif isinstance(node, ast.ClassDef):
            yield node.name, ast.get_docstring(node) or '', parameters_of_class(node)


def parameters_of_class(node: ast.ClassDef) -> set[str]:
    """Fields and parameters of the constructor, or else those of the constructor that a class inherits."""
    made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == '__init__']
    fields = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and hasattr(part.target, 'id')}
    bases = [] if made else [classes()[base.id] for base in node.bases if getattr(base, 'id', '') in classes()]
    return fields.union(*map(parameters, made), *map(parameters_of_class, bases))


def test_the_search_sees_single_and_joint_descriptions():
    text = 'Sums.\n\nArgs:\n    a: one.\n        Note: more.\n    b, *c: two.\n\nReturns:\n    d: no parameter.\n'
    assert described(text) == {'a', 'b', 'c'}


def test_described_parameters_exist():
    unknown = {
        f'{path.relative_to(ROOT)}: {name}': described(docstring) - there
        for path, tree in trees().items()
        for name, docstring, there in signatures(tree)
    }
    assert {place: names for place, names in unknown.items() if names} == {}
