"""Which modules of a network can have branches, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from ..errors import SnnetError, did_you_mean
from ..stitching.stitch_layer import StitchLayer
from .block import GROWN, is_block, kinds_of, window_of

Where = Callable[[str, nn.Module], bool] | Iterable[str] | None
"""Names of modules, a rule that is asked for each name and module, or None for `worthwhile`."""


def worthwhile(name: str, module: nn.Module) -> bool:
    """The usual choice: stitch layers, and convolutions with more than one tap that do not run on the image itself.

    The published counts leave the first convolution plain. A network that is but a convolution is always worth it.
    """
    return not name or not isinstance(module, nn.Conv2d) or (max(module.kernel_size) > 1 and module.in_channels > 3)


def obstacle(module: nn.Module) -> str | None:
    """Why a module can have no branches that fold into it; None where it can (or has)."""
    if is_block(module):
        return None
    if type(module) not in GROWN:
        return f'a {type(module).__name__} is no Conv2d, Conv2dSame or stitch layer, and may compute something else'
    if 'weight' not in module._parameters:
        return 'its weight is computed from other tensors'
    if isinstance(module, StitchLayer) and module.down is not None:
        return 'it has a low-rank update: merge it first'
    return None


def growable(network: nn.Module, where: Where = None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules that are wanted and can have branches, by name, and for the others that are wanted the obstacle.

    Raises:
        SnnetError: a name that is not there, or something that is named and has an obstacle.
    """
    modules = dict(network.named_modules())
    if where is None or callable(where):
        rule = where or worthwhile
        wanted = [name for name, module in modules.items() if _is_map(module) and rule(name, module)]
    else:
        wanted = [where] if isinstance(where, str) else list(where)
        for name in wanted:
            if name not in modules:
                near = did_you_mean(name, modules)
                raise SnnetError(f"the network has no module '{name}' that could get branches{near}")
    shared, inside = _shared(modules), _inside_others(modules)
    found, refused = {}, {}
    for name in wanted:
        reason = obstacle(modules[name])
        if reason is None and name in shared:
            reason = 'another module has the same weight'
        if reason is None and name in inside:
            reason = f'{inside[name]} folds it in a way of its own'
        if reason is None:
            found[name] = modules[name]
        else:
            refused[name] = reason
    if refused and not (where is None or callable(where)):
        name, reason = next(iter(refused.items()))
        raise SnnetError(f'{name} can have no branches: {reason}')
    return found, refused


def possible_kinds(module: nn.Module, kinds: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The kinds of branches that a growable module lacks and may have, and for the others the obstacle.

    Args:
        module: gets them.
        kinds: the wanted ones; those that suit a convolution alone are passed over at a stitch layer, and the other
            way round. All where None.
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
    """Refuses kinds of branches that do not exist.

    Raises:
        SnnetError: names one, and those that there are.
    """
    known = dict.fromkeys(kind for block in GROWN.values() for kind in block.kinds)
    for kind in kinds or ():
        if kind not in known:
            raise SnnetError(f"there is no branch '{kind}', only {', '.join(known)}{did_you_mean(kind, known)}")


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | StitchLayer)


def _shared(modules: dict[str, nn.Module]) -> set[str]:
    """Names of modules whose weight another module holds as well: to change it would change the other."""
    weights = {name: id(module._parameters['weight']) for name, module in modules.items() if _weighted(module)}
    holders = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    return {name for name, weight in weights.items() if holders[weight] > 1}


def _weighted(module: nn.Module) -> bool:
    return module._parameters.get('weight') is not None


def _inside_others(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Modules below one that folds itself by timm's protocol, which reads their weights and knows no branches."""
    found: dict[str, str] = {}
    for name, module in modules.items():
        if not is_block(module) and _folds(module):
            found |= {f'{name}.{inner}' if name else inner: type(module).__name__ for inner, _ in _below(module)}
    return found


def _folds(module: Any) -> bool:
    return any(hasattr(module, method) for method in ('fuse', 'reparameterize', 'switch_to_deploy'))


def _below(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return (pair for pair in module.named_modules() if pair[0])
