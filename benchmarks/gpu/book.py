"""The results of all parts so far, as JSON and as Markdown."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from snnet.utils.files import write_text


class Book:
    """Collects what the parts find and writes both files whenever something is added.

    Args:
        folder: of gpu.json and gpu.md.
        command: that was given.

    Attributes:
        facts: about the machine.
        parts: those that have begun, with their state, notes and tables.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self.json, self.markdown, self.command = folder / 'gpu.json', folder / 'gpu.md', command
        self.facts: dict[str, Any] = {}
        self.parts: list[dict[str, Any]] = []
        self._begun = 0.0

    @property
    def failures(self) -> int:
        """Parts that failed or were cut."""
        return sum(part['state'] in ('failed', 'cut') for part in self.parts)

    def begin(self, number: int, title: str, limit: float) -> None:
        """Opens a part."""
        self._begun = time.monotonic()
        part = {'part': number, 'title': title, 'state': 'running', 'limit_s': round(limit, 1), 'seconds': 0.0}
        self.parts.append({**part, 'sentence': '', 'notes': [], 'tables': {}})
        self._say(f'part {number}, {title}: at most {limit:.0f} s')

    def add(self, entry: dict[str, Any]) -> None:
        """Takes in what a part sent: facts about the machine, a note, or a row of a table."""
        part = self.parts[-1]
        if 'facts' in entry:
            self.facts.update(entry['facts'])
        elif 'note' in entry:
            part['notes'].append(entry['note'])
            self._say(entry['note'])
        else:
            part['tables'].setdefault(entry['table'], []).append(entry['row'])
            self._say(f'{entry["table"]}: ' + ', '.join(f'{k} {_shown(v)}' for k, v in entry['row'].items()))
        self._write()

    def close(self, state: str, sentence: str = '') -> None:
        """Ends the part: 'done', 'failed' or 'cut', with the reason."""
        part = self.parts[-1]
        part.update(state=state, sentence=sentence, seconds=round(time.monotonic() - self._begun, 1))
        self._say(f'part {part["part"]} {state} after {part["seconds"]} s {sentence}'.rstrip())
        self._write()

    def _write(self) -> None:
        self.parts[-1]['seconds'] = round(time.monotonic() - self._begun, 1)
        whole = {'command': self.command, 'facts': self.facts, 'parts': self.parts}
        write_text(self.json, json.dumps(whole, indent=1))
        write_text(self.markdown, self._as_markdown())

    def _as_markdown(self) -> str:
        facts = '; '.join(f'{name} {value}' for name, value in self.facts.items())
        lines = [f'```bash\n{self.command}\n```', '', f'{facts}.', '']
        for part in self.parts:
            ended = f'{part["state"]}, {part["seconds"]:.0f} s of at most {part["limit_s"]:.0f}'
            lines += [f'## {part["part"]}. {part["title"]}', '', f'{ended}. {part["sentence"]}'.rstrip(), '']
            for title, rows in part['tables'].items():
                columns = list(dict.fromkeys(name for row in rows for name in row))
                lines += [f'**{title}**', '', f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
                lines += [f'| {" | ".join(_shown(row.get(name, "")) for name in columns)} |' for row in rows]
                lines.append('')
            lines += [f'- {note}' for note in part['notes']]
            lines.append('')
        return '\n'.join(lines)

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)


def _shown(value: Any) -> str:
    """A cell: numbers with four digits, text without what would end the cell."""
    if isinstance(value, float):
        return f'{value:.4g}' if abs(value) < 1e4 else f'{value:.0f}'
    return str(value).replace('|', '/').replace('\n', ' ')
