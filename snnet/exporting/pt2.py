"""Files of torch.export (.pt2), which run wherever torch is installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

METADATA = 'metadata.json'
"""Name of the extra file in a .pt2 that describes it."""


def write_pt2(program: ExportedProgram, metadata: Mapping[str, Any], path: Path, data: str) -> None:
    """Writes a program (see `Format.write`)."""
    with open(path, 'wb') as file:  # given a path, torch would insist on the suffix
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata, indent=1)})


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """Reads a file (see `Format.load`)."""
    with open(path, 'rb') as file:
        run: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return run
