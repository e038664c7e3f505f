"""Similarity of the features at all boundaries of a zoo, and the functional similarity of blocks (Definition 3)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import SnnetError
from ..stitching.stitch import Leg
from ..utils.files import write_atomically, write_tensors
from ..utils.typed_json import parse_json


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity s of the features at all boundaries of a zoo.

    Attributes:
        boundaries: name of the network and position, network by network, starting at position 0.
        matrix: (boundaries, boundaries), float64, symmetric, with 1 on the diagonal. Unbiased values may lie below 0.
            Features that do not vary between images are similar to nothing: 0, even on the diagonal.
    """

    boundaries: tuple[tuple[str, int], ...]
    matrix: np.ndarray

    def __post_init__(self) -> None:
        lengths: dict[str, int] = {}
        for name, position in self.boundaries:
            if position != lengths.get(name, 0) or (position and name != list(lengths)[-1]):
                raise SnnetError(f'position {position} of {name} is out of order in the list of boundaries')
            lengths[name] = position + 1
        if self.matrix.shape != (len(self.boundaries),) * 2:
            raise SnnetError(f'{len(self.boundaries)} boundaries need a square matrix, not one of {self.matrix.shape}')
        if not np.isfinite(self.matrix).all():
            raise SnnetError('the similarity of two boundaries is not a finite number')

    @property
    def positions(self) -> dict[str, int]:
        """Number of positions of each network, by name: one more than its line has modules."""
        return {name: position + 1 for name, position in self.boundaries}

    def span(self, network: str) -> slice:
        """Rows of the matrix that belong to a network.

        Raises:
            SnnetError: the network is not in the zoo.
        """
        counts = self.positions
        if network not in counts:
            raise SnnetError(f"'{network}' is not in the zoo of {', '.join(counts)}")
        first = self.boundaries.index((network, 0))
        return slice(first, first + counts[network])

    def between(self, network: str, other: str) -> np.ndarray:
        """Similarity of all positions of two networks (positions of `network`, positions of `other`)."""
        return self.matrix[self.span(network), self.span(other)]

    def functional(self, block: Leg, other: Leg) -> float:
        """Functional similarity of two blocks, S = s(inputs) + s(outputs), at most 2 (Definition 3).

        A block is given as a leg. An open leg counts from the first position of its network, or to the last one.
        """
        between = self.between(block.anchor, other.anchor)
        last = [size - 1 for size in between.shape]
        starts = between[block.start or 0, other.start or 0]
        stops = [end if leg.stop is None else leg.stop for leg, end in zip((block, other), last, strict=True)]
        return float(starts + between[stops[0], stops[1]])

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        tensors = {'matrix': torch.from_numpy(np.ascontiguousarray(self.matrix))}
        write_atomically(path, lambda file: write_tensors(file, tensors, {'boundaries': json.dumps(self.boundaries)}))

    @classmethod
    def load(cls, path: Path) -> Similarity:
        """Reads what `save` wrote.

        Raises:
            SnnetError: the file is missing, damaged or holds something else.
        """
        try:
            with safe_open(path, 'pt') as file:
                boundaries = parse_json((file.metadata() or {})['boundaries'])
                matrix = file.get_tensor('matrix').double().numpy()
            return cls(tuple((str(name), int(position)) for name, position in boundaries), matrix)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise SnnetError(
                f"'{path}' is not a valid file of similarities: {str(error) or type(error).__name__}"
            ) from None
