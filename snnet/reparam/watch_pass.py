"""One pass of a network, watched operation by operation: what reads a module's weights, and where its output goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..anchors.anchor import Anchor
from ..anchors.cut import Absent
from ..utils.eval_mode import eval_mode
from ..utils.seeds import generator
from .block import Block, is_block

Run = Callable[[], Any]
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def passes_of(network: nn.Module, images: Tensor | None = None) -> list[tuple[nn.Module, Run]]:
    """The parts of a network that can be run on their own, each with a function that runs it.

    Those are its anchors, which know the size of their images, except where parts were cut out; without anchors, the
    network itself on the given images.
    """
    found: list[tuple[nn.Module, Run]] = []
    for anchor in (module for module in network.modules() if isinstance(module, Anchor)):
        if not is_cut(anchor):
            weight = next(anchor.parameters())
            x = torch.randn(1, *anchor.input_size, generator=generator(0, 'images that test a fold')).to(weight)
            found.append((anchor, partial(anchor, x)))
    if not found and images is not None:
        found.append((network, partial(network, images)))
    return found


def is_cut(anchor: Anchor) -> bool:
    """Whether parts of an anchor were cut out, so that it cannot run."""
    return any(isinstance(module, Absent) for module in anchor.modules())


def output_of(part: nn.Module, run: Run) -> list[Tensor]:
    """The tensors that a part of a network returns in eval mode, the same at every call."""
    with eval_mode(part), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return [leaf for leaf in tree_leaves(run()) if isinstance(leaf, Tensor)]


def read_outside(part: nn.Module, run: Run, modules: Mapping[str, nn.Module]) -> set[str]:
    """Names of the modules whose weight or bias is read outside their own forward in a pass."""
    watcher = _Watcher(modules, (), ())
    with watcher.hooks():
        watcher.watch(part, run)
    return watcher.read_outside


def absorbing_norms(part: nn.Module, run: Run) -> dict[Block, nn.Module]:
    """The BatchNorm behind each block without bias whose output goes there and nowhere else.

    Such a BatchNorm can absorb the bias that folding leaves.
    """
    blocks = [module for module in part.modules() if is_block(module) and module.bias is None]
    inside_blocks = {id(module) for block in part.modules() if is_block(block) for module in block.modules()}
    norms = [
        module
        for module in part.modules()
        if isinstance(module, _NORMS) and id(module) not in inside_blocks and module.track_running_stats
    ]
    watcher = _Watcher({}, blocks, norms)
    with watcher.hooks():
        watcher.watch(part, run)
    return watcher.absorbing_norms()


def absorb_bias(norm: nn.Module, bias: Tensor) -> None:
    """Subtracts a bias (C) that its input lost from the running mean of a BatchNorm: its output in eval mode stays."""
    mean = norm.get_buffer('running_mean')
    mean.copy_(mean.to(bias) - bias)


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Notes which operations read some tensors, with gradients or without.

    Tensors are known by the address of their first element, so that views and detached copies count as the tensor.

    Args:
        modules: by name, whose parameters are watched.
        blocks: whose outputs are watched.
        norms: which may take those outputs.
    """

    def __init__(self, modules: Mapping[str, nn.Module], blocks: Sequence[Block], norms: Sequence[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.modules, self.blocks, self.norms = modules, blocks, norms
        self.read_outside: set[str] = set()
        self._owner = {p.data_ptr(): name for name, module in modules.items() for p in module.parameters()}
        self._running: list[str] = []
        self._made: dict[int, Block] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the address of one that is watched
        self._uses: Counter[Block] = Counter()
        self._runs: Counter[nn.Module] = Counter()
        self._norm_of: dict[Block, nn.Module] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                name = self._owner.get(leaf.data_ptr())
                if name is not None and name not in self._running:
                    self.read_outside.add(name)
                block = self._made.get(leaf.data_ptr())
                if block is not None:
                    self._uses[block] += 1
        return func(*args, **(kwargs or {}))

    def watch(self, part: nn.Module, run: Run) -> None:
        """Runs the part in eval mode."""
        with torch.inference_mode(False), self:
            output = output_of(part, run)
        for leaf in output:
            block = self._made.get(leaf.data_ptr())
            if block is not None:
                self._uses[block] += 1  # it leaves the network as it is

    def absorbing_norms(self) -> dict[Block, nn.Module]:
        """By block, if the one use of its output is that by a BatchNorm, and both ran once."""
        return {
            block: norm
            for block, norm in self._norm_of.items()
            if self._uses[block] == self._runs[block] == self._runs[norm] == 1
        }

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Lets the modules tell when they run, within a `with` block."""
        handles = []
        for name, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)))
            handles.append(module.register_forward_hook(lambda *_: self._leave()))
        handles += [block.register_forward_hook(self._note_output) for block in self.blocks]
        handles += [norm.register_forward_pre_hook(self._note_norm) for norm in self.norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._running.pop()

    def _note_output(self, block: nn.Module, args: Any, output: Tensor) -> None:
        assert is_block(block)
        self._runs[block] += 1
        self._made[output.data_ptr()] = block
        self._kept.append(output)

    def _note_norm(self, norm: nn.Module, args: Any) -> None:
        self._runs[norm] += 1
        block = self._made.get(args[0].data_ptr())
        if block is not None:
            self._norm_of[block] = norm
