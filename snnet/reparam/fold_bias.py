"""Which BatchNorm of the network alone takes what a block puts out: it absorbs the bias that folding leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..utils.modes import eval_mode
from .block import Block, is_block

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def followers(network: nn.Module, images: Tensor) -> dict[Block, nn.Module]:
    """The BatchNorm behind each block whose output goes there and nowhere else, as autograd's graph of one pass says.

    Args:
        network: has the blocks.
        images: it runs on.
    """
    blocks = [module for module in network.modules() if is_block(module)]
    inner = {id(module) for block in blocks for module in block.modules()}
    norms = [m for m in network.modules() if isinstance(m, _NORMS) and id(m) not in inner and m.track_running_stats]
    made: dict[Any, list[Block]] = {}
    taken: list[tuple[Any, nn.Module]] = []

    def note_block(module: nn.Module, args: Any, output: Tensor) -> None:
        made.setdefault(output.grad_fn, []).append(module)  # type: ignore[arg-type]  # hooked on blocks alone

    def note_norm(module: nn.Module, args: Any) -> None:
        taken.append((args[0].grad_fn, module))

    handles = [block.register_forward_hook(note_block) for block in blocks]
    handles += [norm.register_forward_pre_hook(note_norm) for norm in norms]
    try:
        with eval_mode(network), torch.inference_mode(False), torch.enable_grad(), _all_require_grad(network):
            output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    uses = Counter(child for node in _graph(tree_leaves(output)) for child, _ in node.next_functions)
    runs = Counter(block for blocks in made.values() for block in blocks)
    turns = Counter(norm for _, norm in taken)
    return {
        made[node][0]: norm
        for node, norm in taken
        if node in made and uses[node] == 1 and turns[norm] == 1 and runs[made[node][0]] == 1
    }


def absorb(norm: nn.Module, bias: Tensor) -> None:
    """Takes a bias before a BatchNorm into its running mean: in eval mode the output stays the same."""
    mean = norm.get_buffer('running_mean')
    mean.copy_(mean.to(bias) - bias)


@contextmanager
def _all_require_grad(network: nn.Module) -> Iterator[None]:
    """Frozen parameters would leave gaps in the graph."""
    frozen = [p for p in network.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _graph(outputs: Iterable[Any]) -> Iterator[Any]:
    """Every node of autograd's graph once."""
    todo = [output.grad_fn for output in outputs if isinstance(output, Tensor)]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(child for child, _ in node.next_functions)
