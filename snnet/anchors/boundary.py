"""What flows between two modules of a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Boundary:
    """What flows at a position of a line.

    Attributes:
        channels: width of the features.
        grid: rows and columns of the feature map.
        layout: 'NCHW', 'NHWC' or 'NLC' (L = prefix + rows x columns), timm's words.
        prefix: number of tokens before those of the grid (class, distillation, registers); 0 except for 'NLC'.
    """

    channels: int
    grid: tuple[int, int]
    layout: str
    prefix: int = 0

    def joins(self, other: Boundary) -> bool:
        """Whether one stitch layer can connect the two: grid and prefix agree (it converts layout and width)."""
        return self.grid == other.grid and self.prefix == other.prefix

    @property
    def tokens(self) -> int:
        """Feature vectors per image: the prefix tokens and every cell of the grid."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features, without the batch axis."""
        if self.layout == 'NLC':
            return self.tokens, self.channels
        return (*self.grid, self.channels) if self.layout == 'NHWC' else (self.channels, *self.grid)

    def __str__(self) -> str:
        prefix = f' + {self.prefix} prefix' if self.prefix else ''
        return f'{self.grid[0]}x{self.grid[1]}{prefix}, {self.channels} channels {self.layout}'


def boundary_of_map(shape: Sequence[int], layout: str) -> Boundary:
    """What flows where a feature map has this shape, batch first; the layout is 'NCHW' or 'NHWC'."""
    if layout == 'NHWC':
        return Boundary(shape[3], (shape[1], shape[2]), layout)
    return Boundary(shape[1], (shape[2], shape[3]), layout)


def boundary_of(shape: Sequence[int], layout: str, prefix: int, input_size: Sequence[int]) -> Boundary | None:
    """What flows where a tensor has this shape, batch first; None where its tokens do not form the image's grid.

    Args:
        shape: of the features.
        layout: 'NCHW', 'NHWC' or 'NLC'.
        prefix: number of prefix tokens.
        input_size: channels, height and width of the image; its proportions are those of a token grid.
    """
    if layout != 'NLC':
        return boundary_of_map(shape, layout)
    tokens = shape[1] - prefix
    rows = round((max(tokens, 0) * input_size[1] / input_size[2]) ** 0.5)
    return Boundary(shape[2], (rows, tokens // rows), layout, prefix) if rows and tokens % rows == 0 else None
