"""Elastic neural networks made of pretrained ones: anchors, stitches, and one net that runs at any budget."""

from . import reparam
from .anchors.anchor import Anchor, Source, Stage
from .anchors.boundary import Boundary
from .anchors.registry import as_anchor, register_adapter
from .budget.frontier import Record, frontier
from .budget.latency_table import Latency, LatencyTable, Setup
from .budget.select import Selection, select
from .calibration.initialize import initialize, kaiming
from .calibration.recalibrate import recalibrate
from .errors import (
    BudgetInfeasible,
    CannotStitch,
    ForeignTable,
    InvalidBudget,
    NoWeights,
    SnnetError,
    UnknownStitch,
)
from .exporting.export import export
from .exporting.export_set import export_set
from .net.compile_blocks import compile_blocks, warm_up
from .net.costs import measure_costs
from .net.create import create_stitchable_net
from .net.official import load_official
from .net.stitchable_net import StitchableNet
from .profiling.profile import profile
from .stitching.space import list_stitches
from .stitching.stitch import Leg, Stitch

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
    'initialize',
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
