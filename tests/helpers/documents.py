"""The pages of the documentation (also README.md and those in the package), taken apart: code, commands, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / page for page in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
    *sorted((ROOT / 'snnet').rglob('*.md')),
]

_FENCE = re.compile(r'(?P<indent> *)```(?P<language>\w*)')
_NOT_RUN = re.compile(r'<!-- not run: (.+?) -->')
_PAGE_NOT_RUN = re.compile(r'<!-- commands on this page are not run: (.+?) -->', re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its page, first line number, language, content, and why it is not run ('' where it is)."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    lines = page.read_text(encoding='utf-8').splitlines()
    whole_page = _PAGE_NOT_RUN.search('\n'.join(lines))
    found: list[Block] = []
    mark, number = '', 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            reason = _NOT_RUN.search(lines[number])
            if reason or lines[number].strip():
                mark = reason[1] if reason else ''
            number += 1
            continue
        begin, indent, language = number, len(fence['indent']), fence['language']
        end = next(i for i in range(begin + 1, len(lines)) if lines[i].strip() == '```')
        text = '\n'.join(line[indent:] for line in lines[begin + 1 : end])
        reason = mark or (whole_page[1] if whole_page and language == 'bash' else '')
        found.append(Block(page, begin + 1, language, text, reason))
        mark, number = '', end + 1
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a bash block, each split into words, without comments."""
    joined = re.sub(r'\\\n *', '', block.text)
    split = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in split if words]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r'^ *```.*?^ *```$', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE)


def inline_code(page: Path) -> list[str]:
    """What a page's sentences set in backticks, line breaks replaced by spaces."""
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(page))]


def links(page: Path) -> list[str]:
    """Targets of links and pictures that lead to a file of the repository."""
    targets = re.findall(r'\]\(([^)\s]+)\)', prose(page))
    return [target for target in targets if not re.match(r'https?:|mailto:|#', target)]
