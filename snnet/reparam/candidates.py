"""Which modules of a network can have branches, and why others cannot."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import SnnetError, did_you_mean
from ..stitching.stitch_layer import StitchLayer
from .block import is_block
from .rep_layers import BLOCK_OF, kinds_of, window_of

_log = logging.getLogger(__name__)
Where = Callable[[str, nn.Module], bool] | Iterable[str] | None
"""Names of modules, a rule that is asked for each name and module, or None for `grows_by_default`."""

READ_OUTSIDE = 'something else reads its weight, too'


def grows_by_default(name: str, module: nn.Module) -> bool:
    """Whether a module grows if nothing is said: stitch layers, and k x k convolutions that do not run on the image.

    The published counts leave the first convolution plain. A network that is a single convolution always grows.
    """
    return not name or not isinstance(module, nn.Conv2d) or (max(module.kernel_size) > 1 and module.in_channels > 3)


def names_modules(where: Where) -> bool:
    """Whether modules are named one by one, so that one with an obstacle is an error."""
    return where is not None and not callable(where)


def obstacle(module: nn.Module) -> str | None:
    """Why a module can have no branches that fold into it; None if it can (or has some)."""
    if is_block(module):
        return None
    if type(module) not in BLOCK_OF:
        return f'a {type(module).__name__} is not a Conv2d, a Conv2dSame or a stitch layer, and may compute more'
    if isinstance(module, StitchLayer) and module.down is not None:
        return 'it has a low-rank update: merge it first'
    for name in ('weight', 'bias'):
        if name not in module._parameters:
            return f'its {name} is computed from other tensors'
    if any(tensor is not None for tensor in module._buffers.values()) or any(module.children()):
        return 'it has other tensors or modules than its class'
    patched = [name for name in vars(module) if callable(getattr(type(module), name, None))]
    return f'its {patched[0]} was replaced' if patched else None


def growable(network: nn.Module, where: Where = None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The wanted modules that can have branches, by name, and for the other wanted ones the obstacle.

    Raises:
        SnnetError: a name that the network does not have, or a named module with an obstacle.
    """
    modules = dict(network.named_modules())
    wanted = _wanted(modules, where)
    shared, inside = _shared(modules), _inside_others(modules)
    found, refused = {}, {}
    for name in wanted:
        reason = obstacle(modules[name])
        if reason is None and name in shared:
            reason = f'another module has the same {shared[name]}'
        if reason is None and name in inside:
            reason = f'{inside[name]} folds it in its own way'
        if reason is None:
            found[name] = modules[name]
        else:
            refused[name] = reason
    if refused and names_modules(where):
        name, reason = next(iter(refused.items()))
        raise SnnetError(f'{name} can have no branches: {reason}')
    return found, refused


def trained_modules(network: nn.Module, where: Where, trains: Callable[[nn.Parameter], bool]) -> dict[str, nn.Module]:
    """The modules that can have branches and are trained, by name; the log says why others that are wanted are not.

    Args:
        network: any module.
        where: as for `growable`.
        trains: whether the optimizer holds a weight.

    Raises:
        SnnetError: there are none, or as for `growable`.
    """
    found, refused = growable(network, where)
    for name, module in found.items():
        weight = module.get_parameter('weight')
        if not weight.requires_grad:
            refused[name] = 'its weight is frozen'
        elif not trains(weight):
            refused[name] = 'the optimizer does not hold its weight'
    for name, reason in refused.items():
        _log.warning('%s gets no branches: %s', name, reason)
    modules = {name: module for name, module in found.items() if name not in refused}
    if not modules:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in list(refused.items())[:3])
        raise SnnetError(
            f'nothing to grow in this {type(network).__name__}: it has no trained convolution or stitch layer that '
            f'can have branches{f" ({reasons})" if reasons else ""}'
        )
    return modules


def possible_kinds(module: nn.Module, kinds: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The kinds of branches that a growable module can get, and for the others the obstacle.

    Args:
        module: a growable module; the kinds that it has already are left out.
        kinds: the wanted ones; those that suit only convolutions are skipped for a stitch layer, and vice versa. All
            if None.
    """
    window, table = window_of(module), kinds_of(module)
    present = module.branches if is_block(module) else ()
    fitting, left_out = [], {}
    for kind in table if kinds is None else kinds:
        if kind in table and kind not in present:
            reason = table[kind].obstacle(window)
            if reason is None:
                fitting.append(kind)
            else:
                left_out[kind] = reason
    return fitting, left_out


def check_kinds(kinds: Sequence[str] | None) -> None:
    """Checks the names of kinds of branches.

    Raises:
        SnnetError: one does not exist.
    """
    if isinstance(kinds, str) or (kinds is not None and not len(kinds)):
        raise SnnetError(f"kinds is a list of branches, such as ['1x1'], or None for all, not {kinds!r}")
    known = dict.fromkeys(kind for block in BLOCK_OF.values() for kind in block.kinds)
    for kind in kinds or ():
        if kind not in known:
            raise SnnetError(f"there is no branch '{kind}', only {', '.join(known)}{did_you_mean(kind, known)}")


def _wanted(modules: dict[str, nn.Module], where: Where) -> list[str]:
    if where is None or callable(where):
        rule = where or grows_by_default
        return [name for name, m in modules.items() if isinstance(m, nn.Conv2d | StitchLayer) and rule(name, m)]
    wanted = [where] if isinstance(where, str) else list(where)
    for name in wanted:
        if name not in modules:
            near = did_you_mean(name, modules)
            raise SnnetError(f"the network has no module '{name}' that could get branches{near}")
    return wanted


def _shared(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Names of modules with a parameter whose memory another module uses, too: changing it would change the other."""
    holders = Counter(
        _memory(tensor) for module in modules.values() for tensor in (*_own(module._parameters), *_own(module._buffers))
    )
    return {
        name: which
        for name, module in modules.items()
        for which in ('bias', 'weight')  # the weight has the last word
        if (tensor := module._parameters.get(which)) is not None and holders[_memory(tensor)] > 1
    }


def _own(tensors: dict[str, Any]) -> Iterator[Tensor]:
    return (tensor for tensor in tensors.values() if isinstance(tensor, Tensor) and tensor.numel())


def _memory(tensor: Tensor) -> int:
    """Equal for tensors that share their memory; on the meta device, where there is none, for one tensor alone."""
    return id(tensor) if tensor.is_meta else tensor.data_ptr()


def _inside_others(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Modules inside one that folds itself by timm's protocol, which reads their weights and knows no branches."""
    found: dict[str, str] = {}
    for name, module in modules.items():
        if not is_block(module) and any(hasattr(module, m) for m in ('fuse', 'reparameterize', 'switch_to_deploy')):
            below = [inner for inner, _ in module.named_modules() if inner]
            found |= {f'{name}.{inner}' if name else inner: type(module).__name__ for inner in below}
    return found
