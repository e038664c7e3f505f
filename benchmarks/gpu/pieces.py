"""A saved net in files of limited size, because some ways back from a machine carry only small ones."""

from __future__ import annotations

import copy
from pathlib import Path

import snnet
from snnet.saving.file_names import WEIGHTS

LARGEST = 15_000_000
"""Bytes of a piece."""


def save_in_pieces(net: snnet.StitchableNet, folder: Path, largest: int = LARGEST) -> list[Path]:
    """Saves a net in half precision; its weights become FILE.00, FILE.01 and so on.

    `cat model.safetensors.* > model.safetensors` in the folder makes it whole again.

    Returns:
        The pieces.
    """
    copy.deepcopy(net).half().save_pretrained(folder)
    whole = folder / WEIGHTS
    data = whole.read_bytes()
    for old in folder.glob(f'{WEIGHTS}.*'):
        old.unlink()
    pieces = [folder / f'{WEIGHTS}.{place:02}' for place in range(-(-len(data) // largest))]
    for place, piece in enumerate(pieces):
        piece.write_bytes(data[place * largest : (place + 1) * largest])
    whole.unlink()
    return pieces
