"""Elastic neural networks made of pretrained ones: anchors, stitches, and one net that runs at any budget."""

from . import reparam
from .anchors import as_anchor, register_adapter
from .budget import Selection, select
from .build import create_stitchable_net
from .compile import compile_blocks, warm_up
from .cost import measure_costs
from .errors import BudgetInfeasible, CannotStitch, ForeignTable, InvalidBudget, NoWeights, SnnetError, UnknownStitch
from .export import export
from .export_set import export_set
from .frontier import Record, frontier
from .latency import Latency, LatencyTable, Setup
from .line import Anchor, Boundary, Source, Stage
from .net import StitchableNet
from .official import load_official
from .profile import profile
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
    'ForeignTable',
    'InvalidBudget',
    'Latency',
    'LatencyTable',
    'Leg',
    'NoWeights',
    'Record',
    'Selection',
    'Setup',
    'SnnetError',
    'Source',
    'Stage',
    'Stitch',
    'StitchableNet',
    'UnknownStitch',
    'as_anchor',
    'compile_blocks',
    'create_stitchable_net',
    'export',
    'export_set',
    'frontier',
    'initialise',
    'kaiming',
    'list_stitches',
    'load_official',
    'measure_costs',
    'profile',
    'recalibrate',
    'register_adapter',
    'reparam',
    'select',
    'warm_up',
]
