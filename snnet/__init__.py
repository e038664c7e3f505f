"""Elastic neural networks made of pretrained ones: anchors, stitches, and one net that runs at any budget."""

from typing import TYPE_CHECKING

from .utils.lazy import lazy_package

if TYPE_CHECKING:
    from . import (
        anchors as anchors,
        budget as budget,
        calibration as calibration,
        cli as cli,
        config as config,
        data as data,
        errors as errors,
        evaluation as evaluation,
        exporting as exporting,
        net as net,
        profiling as profiling,
        reassembly as reassembly,
        reparam as reparam,
        saving as saving,
        serve as serve,
        stitching as stitching,
        training as training,
        utils as utils,
    )
    from .anchors.anchor import Anchor, Source
    from .anchors.boundary import Boundary
    from .anchors.network_line import Stage
    from .anchors.registry import as_anchor, register_adapter
    from .budget.frontier import frontier
    from .budget.latency_table import Latency, LatencyTable, Setup
    from .budget.record import Record
    from .budget.select import Selection, select
    from .calibration.adapt import adapt
    from .calibration.fit_embeddings import fit_embeddings
    from .calibration.initialize import initialise, initialize, kaiming
    from .calibration.recalibrate import recalibrate
    from .errors import (
        BudgetInfeasible,
        CannotStitch,
        ForeignTable,
        InvalidBudget,
        LostRanks,
        MissingExtra,
        NoWeights,
        SnnetError,
        UnknownStitch,
    )
    from .exporting.export import export
    from .exporting.export_set import export_set
    from .net.compile_blocks import compile_blocks, warm_up
    from .net.create import create_stitchable_net
    from .net.keep_stitches import keep_stitches
    from .net.measure_costs import measure_costs
    from .net.official import load_official
    from .net.stitchable_net import StitchableNet
    from .profiling.profile import profile
    from .stitching.space import list_stitches
    from .stitching.stitch import Leg, Stitch
else:
    from . import (
        reassembly as reassembly,  # enters itself among those who build the networks of saved nets; loads no torch
    )

    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            'anchors.anchor': ['Anchor', 'Source'],
            'anchors.boundary': ['Boundary'],
            'anchors.network_line': ['Stage'],
            'anchors.registry': ['as_anchor', 'register_adapter'],
            'budget.frontier': ['frontier'],
            'budget.latency_table': ['Latency', 'LatencyTable', 'Setup'],
            'budget.record': ['Record'],
            'budget.select': ['Selection', 'select'],
            'calibration.adapt': ['adapt'],
            'calibration.fit_embeddings': ['fit_embeddings'],
            'calibration.initialize': ['initialise', 'initialize', 'kaiming'],
            'calibration.recalibrate': ['recalibrate'],
            'errors': [
                'BudgetInfeasible',
                'CannotStitch',
                'ForeignTable',
                'InvalidBudget',
                'LostRanks',
                'MissingExtra',
                'NoWeights',
                'SnnetError',
                'UnknownStitch',
            ],
            'exporting.export': ['export'],
            'exporting.export_set': ['export_set'],
            'net.compile_blocks': ['compile_blocks', 'warm_up'],
            'net.keep_stitches': ['keep_stitches'],
            'net.measure_costs': ['measure_costs'],
            'net.create': ['create_stitchable_net'],
            'net.official': ['load_official'],
            'net.stitchable_net': ['StitchableNet'],
            'profiling.profile': ['profile'],
            'stitching.space': ['list_stitches'],
            'stitching.stitch': ['Leg', 'Stitch'],
        },
    )

__version__ = '0.2.0'

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
    'LostRanks',
    'MissingExtra',
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
    'adapt',
    'as_anchor',
    'compile_blocks',
    'create_stitchable_net',
    'export',
    'export_set',
    'fit_embeddings',
    'frontier',
    'initialise',
    'initialize',
    'kaiming',
    'keep_stitches',
    'list_stitches',
    'load_official',
    'measure_costs',
    'profile',
    'recalibrate',
    'register_adapter',
    'select',
    'warm_up',
]
