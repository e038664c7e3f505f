"""Seals: whether a network is still the one that something was measured on, by its modules and by its weights."""

from __future__ import annotations

from collections.abc import Iterator
from operator import is_
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .digest import digest_of_tensors

_INERT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, DropPath)
"""Modules that do nothing in eval mode: compiling blocks puts one in the place of another."""
_SAMPLES = 16
"""Values of each tensor that a quick look compares."""


class ModuleSeal:
    """Notices that modules were replaced, added or removed, or that tensors have other shapes.

    Args:
        network: as it is now.
    """

    def __init__(self, network: nn.Module) -> None:
        self._structure = _structure(network)
        self._glance: list[Any] | None = _glance_at_modules(network)

    def holds(self, network: nn.Module) -> bool:
        """Whether the modules are still the same."""
        if self._glance is not None and _same_objects(self._glance, _glance_at_modules(network)):
            return True
        if _structure(network) != self._structure:
            return False
        self._glance = _glance_at_modules(network)  # of a copy, or with tensors of equal names and shapes
        return True

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which hold other objects."""
        return {'_structure': self._structure, '_glance': None}


class WeightSeal:
    """Notices that weights, persistent buffers or modules have changed, by content.

    A network may name further tensors that its outputs depend on in an attribute `sealed_tensors`, by name.

    A quick look compares identities, autograd's version counters, addresses and a few values of each tensor; it costs
    about a millisecond. What it misses (single values written through `.data`) a thorough one finds, which digests all
    tensors: before saving, evaluation, recalibration, profiling and export. Whatever moves a network or copies it
    leaves the seal whole.

    Args:
        network: as it is now.
    """

    def __init__(self, network: nn.Module) -> None:
        self._digest = _digest(network)
        self._glance: _Glance | None = _Glance(network)

    def holds(self, network: nn.Module, thorough: bool = False) -> bool:
        """Whether nothing has changed.

        Args:
            network: that was sealed, or a copy of it.
            thorough: digest all tensors whatever the quick look says.
        """
        if not thorough and self._glance is not None and self._glance.same(network):
            return True
        if _digest(network) != self._digest:
            return False
        self._glance = _Glance(network)
        return True

    def counters_hold(self) -> bool:
        """Whether autograd's version counters have not moved: the quickest look, fit for every call of a network."""
        return self._glance is not None and self._glance.versions == _versions(self._glance.tensors)

    def look_again(self) -> None:
        """Makes the next check a thorough one, after the tensors were moved."""
        self._glance = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which hold other objects."""
        return {'_digest': self._digest, '_glance': None}


class _Glance:
    """What a quick look sees of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = _glance_at_modules(network)
        self.tensors = [tensor for _, tensor in _sealed(network)]
        self.versions = _versions(self.tensors)
        self.addresses = _addresses(self.tensors)
        self.views = _sample_views(self.tensors)
        self.samples = [torch.cat(views) for views in self.views]

    def same(self, network: nn.Module) -> bool:
        return (
            self.versions == _versions(self.tensors)
            and self.addresses == _addresses(self.tensors)
            and _same_objects(self.modules, _glance_at_modules(network))
            and all(torch.equal(a, torch.cat(views)) for a, views in zip(self.samples, self.views, strict=True))
        )


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, by name."""
    for prefix, module in network.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f'{prefix}.{name}', parameter
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f'{prefix}.{name}', buffer


def _sealed(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What the seal covers: parameters, persistent buffers and the further tensors that the network names."""
    yield from _tensors(network)
    yield from getattr(network, 'sealed_tensors', {}).items()


def _plain_type(module: nn.Module) -> Any:
    """The class of a module; BatchNorms that look up statistics of stitches count as ordinary ones."""
    return getattr(type(module), '_plain', type(module))


def _structure(network: nn.Module) -> str:
    """Names and classes of modules, names and shapes of tensors."""
    modules = [
        (name, _plain_type(module).__name__)
        for name, module in network.named_modules(remove_duplicate=False)
        if not isinstance(module, _INERT)
    ]
    return repr((modules, [(name, tuple(tensor.shape)) for name, tensor in _tensors(network)]))


def _digest(network: nn.Module) -> str:
    return digest_of_tensors(_sealed(network), _structure(network))


def _glance_at_modules(network: nn.Module) -> list[Any]:
    """Classes of modules and the tensors they hold, in an order that does not depend on names."""
    found: list[Any] = []
    todo = [network]
    while todo:
        module = todo.pop()
        if isinstance(module, _INERT):
            continue
        found.append(_plain_type(module))
        found.extend(module._parameters.values())
        todo.extend(child for child in module._modules.values() if child is not None)
    return found


def _same_objects(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))


def _versions(tensors: list[Tensor]) -> list[int]:
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]  # inference tensors have no counter


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() if _is_plain(tensor) else id(tensor) for tensor in tensors]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own that can be looked into; quantized ones of torchao do not."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


def _sample_views(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Views of a few values of each tensor, grouped by device and type."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if _is_plain(tensor) and tensor.layout == torch.strided and tensor.numel():
            span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            count = min(_SAMPLES, span)
            step = max(1, (span - 1) // max(1, count - 1))
            view = tensor.detach().as_strided((count,), (step,), tensor.storage_offset())
            groups.setdefault((tensor.device, tensor.dtype), []).append(view)
    return list(groups.values())
