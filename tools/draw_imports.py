"""Draws which rooms of the package import which, for the design page.

python -m tools.draw_imports [docs/imports.svg]

Every import counts, those inside functions and for type checkers too. An arrow that follows from others is left out.
"""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'snnet'
DRAWING = ROOT / 'docs' / 'imports.svg'
WIDTH, HEIGHT = 96, 26  # of a box
ACROSS, DOWN = 124, 58  # from one box to the next


def imports_of_rooms() -> dict[str, set[str]]:
    """For each room, the other rooms that its modules import."""
    rooms = {path.parent.name for path in PACKAGE.glob('*/__init__.py')} | {'errors'}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        if parts[0] in rooms:
            found[parts[0]] |= imported(path, parts) & rooms - {parts[0]}
    return found


def imported(path: Path, parts: tuple[str, ...]) -> set[str]:
    """The first part below `snnet` of everything that a file imports from the package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            base = ['snnet', *parts[:-1]][: len(parts) - node.level + 1] if node.level else []
            names |= {'.'.join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split('.')[1] for name in names if name.startswith('snnet.')}


def without_detours(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the arrows that a longer way already implies; a `CycleError` where imports run in a circle."""
    reach: dict[str, set[str]] = {}
    for room in TopologicalSorter(graph).static_order():
        reach[room] = set(graph[room]).union(*(reach[other] for other in graph[room]))
    return {
        room: {other for other in others if not any(other in reach[third] for third in others)}
        for room, others in graph.items()
    }


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """The rooms from the ground up; each stands above everything that it imports."""
    level: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        level[room] = 1 + max((level[other] for other in graph[room]), default=-1)
    return [sorted(room for room in level if level[room] == number) for number in range(max(level.values()) + 1)]


def draw(graph: dict[str, set[str]]) -> str:
    """The graph as SVG, from `cli` at the top down to `errors`."""
    arrows, rows = without_detours(graph), levels(graph)
    wide = max(len(row) for row in rows) * ACROSS
    place = {
        room: (
            round(wide / 2 + (i - (len(row) - 1) / 2) * ACROSS + (number % 2) * 30),
            (len(rows) - number) * DOWN - 24,
        )
        for number, row in enumerate(rows)
        for i, room in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-20 0 {wide + 70} {len(rows) * DOWN + 16}" '
        f'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#607080"/></marker></defs>',
        f'<rect x="-20" width="{wide + 70}" height="{len(rows) * DOWN + 16}" fill="white"/>',
    ]
    for room in sorted(arrows):
        for other in sorted(arrows[room]):
            (x, y), (u, v) = place[room], place[other]
            y, v = y + HEIGHT // 2, v - HEIGHT // 2
            curve = f'M{x} {y}C{x} {y + 30} {u} {v - 30} {u} {v}'
            lines.append(f'<path d="{curve}" fill="none" stroke="#607080" marker-end="url(#tip)"/>')
    for room in sorted(place):
        x, y = place[room]
        left, top = x - WIDTH // 2, y - HEIGHT // 2
        lines.append(
            f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#e8eef6" stroke="#607080"/>'
            f'<text x="{x}" y="{y + 5}" text-anchor="middle">{room}</text>'
        )
    return '\n'.join([*lines, '</svg>\n'])


if __name__ == '__main__':
    Path(sys.argv[1] if len(sys.argv) > 1 else DRAWING).write_text(draw(imports_of_rooms()), encoding='utf-8')
