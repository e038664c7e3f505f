"""Whether a saved anchor could be built again: tried without memory, before anything is written or read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..errors import NoWeights, SnnetError, reason_of
from ..reparam import expect_biases
from ..utils.skip_random_weights import SkipRandomWeights
from .anchor_rows import AnchorRow, describe_anchor, is_made_by_timm
from .tensor_files import refuse_misfits, with_aliases

_INERT = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)
_DESCRIBED = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
_COUNTS = ('num_heads', 'num_prefix_tokens')
"""Integers of modules that change the output though no tensor shows it; others may change as a network runs."""
_TRAINING_ONLY = ('drop', 'momentum')
"""Parts of the names of numbers that change nothing in eval mode."""


def describe_rebuildable(anchor: Anchor, dtype: str = 'float32') -> AnchorRow:
    """The row of an anchor, which builds a network of the same modules, names, shapes and types.

    A changed classifier is described by what it is now.

    Args:
        anchor: without branches that have not been folded away.
        dtype: type of all its floating-point tensors; 'float32' stands for those that the network has when built.

    Raises:
        SnnetError: no row does, because the network was changed after it was made.
    """
    row = describe_anchor(anchor)
    if not is_made_by_timm(row):
        return row
    reason = _difference(row, anchor.model, dtype)
    if reason:
        args = {**row.args, 'num_classes': anchor.num_classes}
        changed = replace(row, args=args)
        pool = getattr(anchor.model, 'global_pool', None)
        pooled = replace(row, args={**args, 'global_pool': pool})
        for other in (changed, pooled):
            if not _difference(other, anchor.model, dtype):
                return other
        raise SnnetError(f'{anchor.name} cannot be saved, because it could not be built again: {reason}')
    return row


def with_classes(row: AnchorRow, num_classes: int) -> AnchorRow:
    """The row of the same network with another number of classes."""
    return replace(row, args={**row.args, 'num_classes': num_classes}) if is_made_by_timm(row) else row


def check_weights(row: AnchorRow, tensors: Mapping[str, Tensor], prefix: str, path: Path, dtype: str) -> None:
    """Compares the tensors of a file with what a row would build, before memory is taken for it.

    Args:
        row: of the anchor.
        tensors: of the file.
        prefix: of the anchor's tensors.
        path: of the file, for messages.
        dtype: type of the net's floating-point weights, as its config.json says.

    Raises:
        NoWeights: names, shapes or types differ.
    """
    if not is_made_by_timm(row):
        return
    held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for name in ('depth', 'depths', 'layers'):  # a network of thousands of blocks takes long to build
        given = row.args.get(name)
        numbers = [n for n in (given if isinstance(given, list | tuple) else [given]) if isinstance(n, int | float)]
        if sum(numbers) > len(held):
            raise NoWeights(f'{path} does not fit its config.json: {name} is {given}, but it holds {len(held)} tensors')
    model = build_on_meta(row)
    if model is None:
        return
    expect_biases(model, held)
    own = model.to(getattr(torch, dtype)).state_dict()
    full = with_aliases(held, own)
    named_own, named_full = ({f'{prefix}{name}': tensor for name, tensor in found.items()} for found in (own, full))
    refuse_misfits(named_own, named_full, path)


def build_on_meta(row: AnchorRow) -> Any:
    """timm's network without memory for its tensors; None where it can only be built with."""
    try:
        with torch.device('meta'), SkipRandomWeights():
            return row.build_model()
    except SnnetError:
        raise
    except Exception:  # networks that compute with real numbers when they are built
        return None


def _difference(row: AnchorRow, model: nn.Module, dtype: str) -> str:
    """What differs between a network and what its row builds, as a clause; empty where nothing does."""
    try:
        built = build_on_meta(row)
        built = row.build_model() if built is None else built
    except SnnetError:
        raise
    except Exception as error:
        return f'timm.create_model refuses its arguments ({reason_of(error)})'
    own = model.state_dict()
    expect_biases(built, own)
    made = built.state_dict()
    odd = sorted(own.keys() ^ made.keys())
    if odd:
        where = 'is not in a network that timm builds' if odd[0] in own else 'is missing'
        return f'{odd[0]} {where}'
    for name, tensor in made.items():
        expected = getattr(torch, dtype) if dtype != 'float32' and tensor.is_floating_point() else tensor.dtype
        if tensor.shape != own[name].shape:
            return f'{name} has shape {tuple(own[name].shape)}, not {tuple(tensor.shape)}'
        if own[name].dtype != expected:
            return f'{name} has type {own[name].dtype}, not {expected} (net.float() converts it)'
    return _other_modules(model, built)


def _other_modules(model: nn.Module, built: nn.Module) -> str:
    now, made = (_modules(network) for network in (model, built))
    for name in sorted(now.keys() ^ made.keys()):
        return f'the module {name} {"was added" if name in now else "is missing"}'
    for name, module in now.items():
        kinds = [getattr(type(m), '_plain', type(m)) for m in (module, made[name])]
        if kinds[0] is not kinds[1]:
            return f'the module {name or "itself"} is a {kinds[0].__name__}, not a {kinds[1].__name__}'
        texts = [_settings_of_torch(m) for m in (module, made[name])]
        if texts[0] != texts[1]:
            return f'the module {name} has {texts[0]}, not {texts[1]}'
        if 'forward' in vars(module) and 'forward' not in vars(made[name]):
            return f'the forward of {name or "the network"} was replaced'
        before = vars(made[name])
        for attribute, value in vars(module).items():
            if _counts(attribute, value) and attribute in before and before[attribute] != value:
                return f'the module {name or "itself"} has {attribute} {value}, not {before[attribute]}'
    return ''


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    named = network.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if not isinstance(module, _INERT)}


def _settings_of_torch(module: nn.Module) -> str:
    """What a module of torch, or of a class derived from one of its layers, says of its settings."""
    if not isinstance(module, _DESCRIBED) and not type(module).__module__.startswith('torch.nn.'):
        return ''
    return module.extra_repr().replace('inplace=True', '').rstrip(', ')


def _counts(attribute: str, value: object) -> bool:
    """Whether an attribute of a module says something of its output in eval mode."""
    if attribute.startswith('_') or any(part in attribute for part in _TRAINING_ONLY):
        return False
    return isinstance(value, float | str) or attribute in _COUNTS
