"""Files and functions of the package stay short enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / 'snnet'
FILES = sorted(PACKAGE.rglob('*.py'))
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 300, 60


def lengths(tree: ast.Module) -> dict[str, int]:
    """Lines of every function, its decorators, docstring and inner functions included."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    starts = [min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) for node in found]
    return {
        f'{node.name} (line {start})': (node.end_lineno or start) - start + 1
        for node, start in zip(found, starts, strict=True)
    }


def test_the_count_includes_decorators_docstring_and_inner_functions():
    code = '@wraps\ndef outer():\n    """Text."""\n    def inner():\n        return 1\n    return inner\n'
    assert lengths(ast.parse(code)) == {'outer (line 1)': 6, 'inner (line 4)': 2}


@pytest.mark.parametrize('path', FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    assert {name: lines for name, lines in lengths(ast.parse(text)).items() if lines > MOST_LINES_OF_A_FUNCTION} == {}
