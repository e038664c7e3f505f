"""DyRep: train with branches that grow where they help and fold away without a trace."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_package

if TYPE_CHECKING:
    from .branch_change import Change
    from .convolution_branches import CONVOLUTION, DBB
    from .expand_network import expand
    from .fold_branches import fold, folded
    from .grower import Grower
    from .scores import SCORES
    from .stitch_branches import STITCH
    from .structure import expect_biases, restore, structure_of
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            'branch_change': ['Change'],
            'convolution_branches': ['CONVOLUTION', 'DBB'],
            'expand_network': ['expand'],
            'fold_branches': ['fold', 'folded'],
            'grower': ['Grower'],
            'scores': ['SCORES'],
            'stitch_branches': ['STITCH'],
            'structure': ['expect_biases', 'restore', 'structure_of'],
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
