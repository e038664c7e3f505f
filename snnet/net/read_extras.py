"""Reads what stitches have for themselves from the folder of a saved net: BatchNorm statistics and parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import NoWeights, excerpt
from ..saving.config_json import NetConfig
from ..saving.file_names import CONFIG
from ..saving.tensor_files import read_tensors
from .measured_net import MeasuredNet
from .own_parameters import OwnParameters, by_stitch
from .stitch_statistics import Statistics, statistics_groups


def read_statistics(net: MeasuredNet, path: Path, config: NetConfig) -> Statistics:
    """The BatchNorm statistics of a net, in the file that its config.json names.

    Raises:
        NoWeights: the file is missing, damaged, or does not fit the net or its config.json.
    """
    assert config.statistics is not None
    values = _read(net, path, config)
    try:
        groups = statistics_groups(net, config.statistics)
        return Statistics(net, values, groups, config.statistics['samples'], config.statistics['held_out'])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise NoWeights(f'{path} does not fit its {CONFIG}: {excerpt(str(error))}') from None


def read_own_parameters(net: MeasuredNet, path: Path, config: NetConfig) -> OwnParameters:
    """The parameters of single stitches of a net, in the file that its config.json names.

    Raises:
        NoWeights: the file is missing, damaged, or does not fit the net or its config.json.
    """
    assert config.own is not None
    tensors = _read(net, path, config)
    try:
        own = OwnParameters(net, by_stitch(tensors))
    except ValueError as error:  # SnnetError is one, too
        raise NoWeights(f'{path} does not fit its {CONFIG}: {excerpt(str(error))}') from None
    if own.description() != config.own:
        listed, found = (
            f'{about["count"]:,} parameters (stitches: {len(about["stitches"])})'
            for about in (config.own, own.description())
        )
        raise NoWeights(f'{path} does not fit its {CONFIG}: it holds {found}, not {listed}, as listed there')
    return own


def _read(net: MeasuredNet, path: Path, config: NetConfig) -> dict[str, Tensor]:
    """The tensors of a file; those of half precision in the type of the net, as its weights are (see `load_into`)."""
    dtype = next(net.parameters()).dtype
    tensors = read_tensors(path, config.sha256.get(path.name))
    return {name: t.to(dtype) if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in tensors.items()}
