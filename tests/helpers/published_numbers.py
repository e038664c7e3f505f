"""The published numbers that tests compare with, as tables in tests/data/published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / 'data' / 'published'


def published_table(table: str) -> Any:
    """A table by the name of its file, without the suffix."""
    return json.loads((_FOLDER / f'{table}.json').read_text())
