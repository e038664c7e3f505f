"""Writes the pages of the API reference while MkDocs builds the site: the public names, then one page per room.

MkDocs calls the two functions (`hooks` in mkdocs.yml). Nothing is kept in the repository, so nothing can go stale.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import snnet

PACKAGE = Path(snnet.__file__).parent


def rooms() -> dict[str, str]:
    """The packages of `snnet/` and the module of errors, each with the first line of its docstring."""
    sources = {path.parent.name: path for path in sorted(PACKAGE.glob('*/__init__.py'))}
    sources['errors'] = PACKAGE / 'errors.py'
    docs = {name: ast.get_docstring(ast.parse(path.read_text())) or '' for name, path in sources.items()}
    return {name: doc.partition('\n')[0] for name, doc in sorted(docs.items())}


def on_config(config: Any) -> Any:
    """Adds the reference to the navigation."""
    pages = ['reference/index.md', *({f'snnet.{room}': f'reference/{room}.md'} for room in rooms())]
    config.nav.append({'API reference': pages})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages themselves."""
    for room, purpose in rooms().items():
        text = f'# snnet.{room}\n\n::: snnet.{room}\n' if purpose else f'# snnet.{room}\n'
        files.append(File.generated(config, f'reference/{room}.md', content=text))
    files.append(File.generated(config, 'reference/index.md', content=public_names()))
    return files


def public_names() -> str:
    """A page with every name that `import snnet` offers, linked to its description."""
    lines = ['# API reference', '', 'What `import snnet` offers:', '']
    for name in sorted(snnet.__all__, key=str.lower):
        value = getattr(snnet, name)
        home = getattr(value, '__module__', None)
        target = f'{home}.{value.__qualname__}' if home else value.__name__
        lines.append(f'- [`snnet.{name}`][{target}]' if home else f'- [`snnet.{name}`]({name}.md)')
    lines += ['', 'The rooms of the package:', '']
    lines += [f'- [`snnet.{room}`]({room}.md): {purpose}' for room, purpose in rooms().items()]
    return '\n'.join(lines) + '\n'
