"""Elastic neural networks made of pretrained ones: anchors, stitches, and one net that runs at any budget."""

from . import reparam
from .anchors import as_anchor, register_adapter
from .build import create_stitchable_net
from .compile import compile_blocks, warm_up
from .cost import measure_costs
from .errors import BudgetInfeasible, CannotStitch, InvalidBudget, NoWeights, SnnetError, UnknownStitch
from .frontier import Record, frontier, select
from .line import Anchor, Boundary, Source, Stage
from .net import StitchableNet
from .recalibrate import recalibrate
from .solve import initialise, kaiming
from .space import list_stitches
from .stitch import Leg, Stitch

__version__ = '0.1.0'

__all__ = [
    'Anchor',
    'Boundary',
    'BudgetInfeasible',
    'CannotStitch',
    'InvalidBudget',
    'Leg',
    'NoWeights',
    'Record',
    'SnnetError',
    'Source',
    'Stage',
    'Stitch',
    'StitchableNet',
    'UnknownStitch',
    'as_anchor',
    'compile_blocks',
    'create_stitchable_net',
    'frontier',
    'initialise',
    'kaiming',
    'list_stitches',
    'measure_costs',
    'recalibrate',
    'register_adapter',
    'reparam',
    'select',
    'warm_up',
]
