"""Files and functions of the package stay short enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / 'snnet'
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


def test_files_and_functions_are_short():
    texts = {path.relative_to(PACKAGE): path.read_text(encoding='utf-8') for path in sorted(PACKAGE.rglob('*.py'))}
    files = {path: len(text.splitlines()) for path, text in texts.items()}
    functions = {(path, name): n for path, text in texts.items() for name, n in lengths(ast.parse(text)).items()}
    assert {path: lines for path, lines in files.items() if lines > MOST_LINES_OF_A_FILE} == {}
    assert {place: lines for place, lines in functions.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}
