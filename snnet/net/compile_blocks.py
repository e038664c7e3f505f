"""torch.compile by block: blocks of one shape share a graph, and choosing among stitches compiles nothing again.

Compiling the whole net would need one graph per stitch, and torch silently runs whatever exceeds its limit of graphs
eagerly. Here the path of a stitch is chosen outside the compiled regions.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch._dynamo
from timm.layers import DropPath
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, RecompileError, TorchDynamoException
from torch._dynamo.utils import counters

from ..anchors.anchor import Anchor
from ..anchors.cut import Absent
from ..errors import reason_of
from ..utils.progress import Progress
from ..utils.signature import Signature, signature_of
from .stitch_tensors import twin_of
from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
Net = TypeVar('Net', bound=nn.Module)
GRAPHS = 64
"""Most graphs for blocks of one shape: one image or several; training, no_grad or inference mode; two types; inputs
with other strides, or without gradients behind frozen anchors. Whatever needs more is recompiled by mistake."""
_numbers = itertools.count()


def compile_blocks(net: Net, backend: str = 'inductor', **options: Any) -> Net:
    """Lets torch compile the blocks and entries of every anchor, in place, each shape at its first call.

    Names of parameters and the state dict stay the same. Copies (`extract`, `copy.deepcopy`) are not compiled. Drop
    path keeps its distribution and its random bits. Blocks that are compiled already are left alone: after replacing a
    block, call this again. A block that torch cannot compile runs eagerly, with a warning.

    Args:
        net: a StitchableNet, an Anchor or an extracted stitch.
        backend: of torch.compile.
        options: for torch.compile, such as `mode`.

    Returns:
        The net.
    """
    anchors = [module for module in net.modules() if isinstance(module, Anchor)]
    kinds: dict[Signature, list[nn.Module]] = defaultdict(list)
    for block in dict.fromkeys(module for anchor in anchors for module in anchor.line()):
        if not isinstance(block, Absent):
            kinds[signature_of(block)].append(block)
    for blocks in kinds.values():
        _share_drop_path(blocks)
        kind = None
        for block in blocks:
            if block._compiled_call_impl is None:
                kind = kind or _SharedGraph(type(block).__name__, backend, options)
                block._compiled_call_impl = partial(kind, block)  # what Module.compile sets; copies leave it behind
    return net


def warm_up(net: nn.Module, images: Tensor, quiet: bool = False) -> int:
    """Compiles everything that later calls need, so that no stitch and no batch size interrupts a run to compile.

    Graphs depend on the mode and the context of the caller: call it once in train mode under the autocast of training,
    once in eval mode under `torch.inference_mode()`, and so on. It leaves no traces: gradients, BatchNorm statistics
    and random states are as before.

    Args:
        net: what `compile_blocks` returned.
        images: (N, C, H, W) with the type, device, memory format and, ideally, the size of later batches; their values
            do not matter. In eval mode, single images, which torch treats separately, are compiled for too.
        quiet: show no progress (ranks other than the first).

    Returns:
        The number of graphs that were compiled.
    """
    batches = [images]
    if not net.training:
        batches = [images if len(images) > 1 else torch.cat([images, images]), images[:1]]
    runs = [partial(net, stitch=i) for i in covering_stitches(net)] if isinstance(net, StitchableNet) else [net]
    anchors = [module for module in net.modules() if isinstance(module, Anchor)]
    values = [(buffer, buffer.clone()) for buffer in net.buffers()] if net.training else []
    devices = [images.device] if images.device.type == 'cuda' else []
    progress = Progress(2 * len(runs) * len(batches), 'runs to compile', quiet=quiet)
    first, begin = _graphs(), time.monotonic()
    try:
        with torch.random.fork_rng(devices):
            for batch in batches:
                for anchor in anchors:
                    anchor.clear_caches()  # the call that fills them has a separate graph
                for run in 2 * runs:
                    _run(run, batch, net)
                    progress.update(1, f'{_graphs() - first} graphs')
    finally:
        progress.close()
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for anchor in anchors:
            anchor.clear_caches()
    _log.info('compiled %d graphs in %.0f s', _graphs() - first, time.monotonic() - begin)
    return _graphs() - first


def covering_stitches(net: StitchableNet) -> list[int]:
    """Ids of a few stitches that together give every module each kind of input that any stitch gives it.

    The kind of input depends on the anchors that ran before (mixed precision leaves another type behind a stitch
    layer than behind a stem) and on whether a stitch layer made it.
    """
    left = {i: set(_inputs(net, i)) for i in range(len(net.stitches))}
    chosen: list[int] = []
    while True:
        best = max(left, key=lambda i: len(left[i]))
        if not left[best]:
            return chosen
        chosen.append(best)
        new = set(left[best])
        for inputs in left.values():
            inputs -= new


class TensorDropPath(DropPath):  # type: ignore[misc]  # timm is not typed
    """timm's drop path with its rate in a tensor: with a plain number, every rate would get its own graph.

    Draws the same random bits as timm's from the same seed, compiled or not.
    """

    @property
    def drop_prob(self) -> float:
        """The rate at which paths are dropped."""
        return float(self._rate)

    @drop_prob.setter
    def drop_prob(self, rate: float) -> None:
        # not a buffer: the rate stays on the CPU, where reading it needs no synchronization
        self._rate = torch.tensor(rate, dtype=torch.float64, device='cpu')

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, ...) with the paths of some images dropped."""
        return x * _path_mask(x.detach(), self._rate, self.scale_by_keep) if self.training else x


@torch.library.custom_op('snnet::path_mask', mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _path_mask(x: Tensor, rate: Tensor, scale: bool) -> Tensor:
    """What timm's drop_path multiplies x by; one op for the compiler, which would draw other random bits."""
    keep = 1 - float(rate)
    mask = x.new_empty((len(x),) + (1,) * (x.ndim - 1))
    if keep == 1:
        return mask.fill_(1)  # timm draws nothing here
    mask.bernoulli_(keep)
    return mask.div_(keep) if keep > 0 and scale else mask


@_path_mask.register_fake
def _(x: Tensor, rate: Tensor, scale: bool) -> Tensor:
    return x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1))


class _SharedGraph:
    """The compiled function that blocks of one shape share.

    Args:
        name: for messages.
        backend: of torch.compile.
        options: of torch.compile.
    """

    def __init__(self, name: str, backend: str, options: dict[str, Any]) -> None:
        self.name = name
        self.eager = False
        # torch keeps and counts graphs by code object: a separate one means few guards to try, and a limit that other
        # networks cannot use up
        code = _call.__code__.replace(co_name=f'{name}_{next(_numbers)}')
        settings: dict[str, Any] = {'fullgraph': True, 'backend': backend, **options}  # fullgraph: the limit raises
        if 'recompile_limit' in inspect.signature(torch.compile).parameters:
            settings['recompile_limit'] = GRAPHS
        else:  # older torch has one limit for all
            torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        self.compiled: Callable[[nn.Module, Tensor], Tensor] = torch.compile(FunctionType(code, globals()), **settings)

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        """Runs a block on features (N, ...)."""
        if self.eager or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            return _call(block, x)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            return self.compiled(twin_of(block), x)
        except RecompileError:
            raise  # asked for by torch.compiler.set_stance
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            y = _call(block, x)  # raises first where the input was at fault
            self.eager = True
            reason = f'more than {GRAPHS} graphs' if isinstance(error, FailOnRecompileLimitHit) else reason_of(error)
            warnings.warn(f'{self.name} runs eagerly, because torch.compile failed: {reason}', stacklevel=2)
            return y


def _call(block: nn.Module, x: Tensor) -> Tensor:
    # a module's call, after the choice between compiled and eager; torch does not annotate it
    return block._call_impl(x)  # type: ignore[no-any-return, no-untyped-call]


def _share_drop_path(blocks: list[nn.Module]) -> None:
    """Gives all blocks of one shape the same drop path, including those that have none where others do."""
    paths = {
        name: module.scale_by_keep
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, DropPath)
    }
    for block, (path, scale) in itertools.product(blocks, paths.items()):
        owner_name, _, leaf = path.rpartition('.')
        owner = block.get_submodule(owner_name)
        old = getattr(owner, leaf)
        if type(old) is DropPath or old is None or isinstance(old, nn.Identity):
            new = TensorDropPath(getattr(old, 'drop_prob', 0.0), scale)
            setattr(owner, leaf, new.train(block.training))


def _inputs(net: StitchableNet, stitch: int) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """The modules that a stitch runs, each with what came before it."""
    before: tuple[str, ...] = ()
    for leg in net.stitches[stitch].legs:
        before = (*before, leg.anchor)
        start, stop, _ = slice(leg.start, leg.stop).indices(len(net.anchor(leg.anchor).line()))
        for position in range(start, stop):
            yield before, position, leg.start is not None and position == start


def _run(run: Callable[[Tensor], Tensor], batch: Tensor, net: nn.Module) -> None:
    y = run(batch)
    if y.requires_grad:  # the backward pass is compiled when it first runs; no gradient is stored, no hook of one runs
        torch.autograd.grad(y.float().sum(), [p for p in net.parameters() if p.requires_grad], allow_unused=True)


def _graphs() -> int:
    return counters['stats']['unique_graphs']
