"""DyRep: train with branches that grow where they help and fold away without a trace."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_package

if TYPE_CHECKING:
    from .branches import CONVOLUTION, DBB
    from .grower import Change, Grower
    from .scores import SCORES
    from .stitch_branches import STITCH
    from .structure import expand, expect_biases, fold, folded, restore, structure_of
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            'branches': ['CONVOLUTION', 'DBB'],
            'grower': ['Change', 'Grower'],
            'scores': ['SCORES'],
            'stitch_branches': ['STITCH'],
            'structure': ['expand', 'expect_biases', 'fold', 'folded', 'restore', 'structure_of'],
        },
    )

__all__ = [
    'CONVOLUTION',
    'Change',
    'DBB',
    'Grower',
    'SCORES',
    'STITCH',
    'expand',
    'expect_biases',
    'fold',
    'folded',
    'restore',
    'structure_of',
]
