"""DyRep: train with branches that grow where they help and fold away without a trace."""

from .branches import CONVOLUTION, DBB
from .grower import Change, Grower
from .scores import SCORES
from .stitch_branches import STITCH
from .structure import (
    expand,
    expect_biases,
    fold,
    folded,
    restore,
    structure_of,
)

__all__ = [
    'CONVOLUTION',
    'DBB',
    'SCORES',
    'STITCH',
    'Change',
    'Grower',
    'expand',
    'expect_biases',
    'fold',
    'folded',
    'restore',
    'structure_of',
]
