"""Draws which rooms of the package import which, for the design page.

python -m tools.draw_imports [docs/imports.svg]

Every import counts, those inside functions and for type checkers too. An arrow that follows from others is left out.
"""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
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


def chains(arrows: dict[str, set[str]], rows: list[list[str]]) -> list[list[str]]:
    """Each arrow as boxes from top to bottom; where it passes a row, the row gets an empty place for it."""
    level = {room: number for number, row in enumerate(rows) for room in row}
    found = []
    for room in sorted(arrows):
        for other in sorted(arrows[room]):
            between = range(level[room] - 1, level[other], -1)
            passing = {number: f'{room}>{other}@{number}' for number in between}
            for number, name in passing.items():
                rows[number].append(name)
            found.append([room, *passing.values(), other])
    return found


def places(rows: list[list[str]], arrows: list[list[str]]) -> dict[str, tuple[float, float]]:
    """The middle of every box and empty place; in a row they stand in the order of what they are joined to."""
    joined: dict[str, set[str]] = {name: set() for row in rows for name in row}
    for arrow in arrows:
        for above, below in pairwise(arrow):
            joined[above].add(below)
            joined[below].add(above)
    across = {name: float(i) for row in rows for i, name in enumerate(row)}
    for _ in range(50):
        for row in rows:
            wanted = {name: sum(across[other] for other in joined[name]) / len(joined[name]) for name in row}
            row.sort(key=lambda name: (wanted[name], name))
            middle = sum(wanted.values()) / len(row) - sum(map(step, row[1:])) / 2
            for i, name in enumerate(row):
                across[name] = middle + sum(map(step, row[1 : i + 1]))
    left = min(across.values())
    return {
        name: (70 + (across[name] - left) * ACROSS, 24 + (len(rows) - 1 - number) * DOWN)
        for number, row in enumerate(rows)
        for name in row
    }


def step(name: str) -> float:
    """Distance from the place before: an arrow that passes needs less room than a box."""
    return 0.6 if '>' in name else 1.0


def draw(graph: dict[str, set[str]]) -> str:
    """The graph as SVG, from `cli` at the top down to `errors`."""
    rows = levels(graph)
    arrows = chains(without_detours(graph), rows)
    place = places(rows, arrows)
    wide, high = round(max(x for x, _ in place.values()) + 70), len(rows) * DOWN - 4
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#607080"/></marker></defs>',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
    ]
    for arrow in arrows:
        (x, y), *others = [place[name] for name in arrow]
        path = f'M{x:.0f} {y + HEIGHT / 2:.0f}'
        y += HEIGHT / 2
        for name, (u, v) in zip(arrow[1:], others, strict=True):
            end = v if '>' in name else v - HEIGHT / 2
            path += f'C{x:.0f} {y + 18:.0f} {u:.0f} {end - 18:.0f} {u:.0f} {end:.0f}'
            x, y = u, end
        lines.append(f'<path d="{path}" fill="none" stroke="#607080" marker-end="url(#tip)"/>')
    for room in sorted(graph):
        x, y = place[room]
        lines.append(
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
            f'fill="#e8eef6" stroke="#607080"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>'
        )
    return '\n'.join([*lines, '</svg>\n'])


if __name__ == '__main__':
    Path(sys.argv[1] if len(sys.argv) > 1 else DRAWING).write_text(draw(imports_of_rooms()), encoding='utf-8')
