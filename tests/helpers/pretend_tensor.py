"""Tensors that say they are on a GPU, keep their numbers on the CPU, and are as strict as CUDA (see pretend_gpu.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device('cuda', 0)


class PretendTensor(Tensor):
    """A tensor on the pretended GPU; `elem` holds its numbers.

    Only Python is told of the device. torch's own code takes it for a tensor of the CPU, because autograd and autocast
    would ask a driver about a GPU.
    """

    elem: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = CUDA  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, elem: Tensor, requires_grad: bool = False) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device='cpu', requires_grad=requires_grad,
        )  # fmt: skip
        made.elem = elem
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f'PretendTensor({self.elem!r})'

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop('copy', False)
        device, dtype, _, layout = _parsed(args, kwargs)
        wanted = {} if layout is None else {'memory_format': layout}
        if device is None or device.type == 'cuda':
            return super().to(dtype or self.dtype, copy=copy, **wanted)
        _note('Tensor.to')
        return self.elem.detach().to('cpu', dtype or self.dtype, copy=True, **wanted)

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to('cpu')

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.elem.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **others: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA, **others)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                copied = PretendTensor(self.elem.clone(), self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class Capture:
    """The operations of a CUDA graph, in order."""

    current: Capture | None = None

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, found in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(found)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


FORBIDDEN = ('_local_scalar_dense', 'nonzero', 'equal', 'is_nonzero', 'lift_fresh', 'masked_select', 'unique')
"""What waits for the device, which no capture allows."""
log: list[str] = []
"""Operations that had the host wait for the device, or moved numbers between them."""


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operation on the numbers behind its tensors, if these agree about the device."""
    name = func.overloadpacket.__name__
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
    there = [t for t in tensors if isinstance(t, PretendTensor)]
    here = [t for t in tensors if not isinstance(t, PretendTensor) and t.dim() > 0]
    backward = torch._C._current_graph_task_id() != -1  # autograd makes zeros where it takes the tensors to be
    if name == '_has_compatible_shallow_copy_type':
        return False
    if here and name != 'copy_' and not backward and not name.startswith(('index', '_index', '_unsafe_index')):
        raise RuntimeError(f'Expected all tensors to be on the same device, but {func} got cuda:0 and cpu')
    masks = name.startswith('index') and any(t.dtype == torch.bool for t in tensors[1:])
    if masks or name in FORBIDDEN or (here and name == 'copy_'):
        _note(str(func))
    bare_args, bare_kwargs = tree_map(_bare, args), tree_map(_bare, kwargs)
    found = func(*bare_args, **bare_kwargs)
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.returns)
    if Capture.current is not None and (writes or not _is_view(found, bare_args)):
        Capture.current.operations.append((func, bare_args, bare_kwargs, found))
    if writes:
        originals = {id(_bare(t)): t for t in tensors}
        return tree_map(lambda t: originals.get(id(t), t) if isinstance(t, Tensor) else t, found)
    if name == 'copy_' and not there:
        return found
    return tree_map(lambda t: on_device(t) if isinstance(t, Tensor) else t, found)


def _bare(value: Any) -> Any:
    return value.elem if isinstance(value, PretendTensor) else value


def _note(what: str) -> None:
    """Keeps in mind that the host waits for the device here, which no capture allows."""
    log.append(what)
    if Capture.current is not None:
        raise RuntimeError(f'operation not permitted when stream is capturing: {what}')


def _is_view(found: Any, args: Any) -> bool:
    held = {t.untyped_storage().data_ptr() for t in tree_flatten(args)[0] if isinstance(t, Tensor)}
    return any(t.untyped_storage().data_ptr() in held for t in tree_flatten(found)[0] if isinstance(t, Tensor))


def on_device(elem: Tensor) -> PretendTensor:
    with torch.inference_mode(elem.is_inference()):  # in inference mode, views of ordinary tensors are ordinary
        return PretendTensor(elem)


class Making(TorchFunctionMode):
    """Puts tensors on the device that are made for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and not isinstance(args[0], PretendTensor):
            copy = kwargs.pop('copy', False)
            device, dtype, _, layout = _parsed(args[1:], kwargs)
            if device is not None and device.type == 'cuda':
                return _moved(args[0], dtype, layout)
            return func(*args, **kwargs, copy=copy)
        if func is Tensor.cuda:
            return _moved(args[0], None, None)
        if func is torch._C._nn._parse_to:
            return func(*args, **kwargs)
        if kwargs.get('device') is None or torch.device(kwargs['device']).type != 'cuda':
            return func(*args, **kwargs)
        if any(isinstance(a, PretendTensor) for a in args):
            return func(*args, **{**kwargs, 'device': None})
        made = func(*args, **{**kwargs, 'device': 'cpu'})
        return on_device(made) if isinstance(made, Tensor) else made


def _parsed(args: Any, kwargs: Any) -> tuple[Any, Any, bool, Any]:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    parsed: tuple[Any, Any, bool, Any] = torch._C._nn._parse_to(*args, **kwargs)
    return parsed


def _moved(tensor: Tensor, dtype: Any, layout: Any) -> Tensor:
    wanted = {} if layout is None else {'memory_format': layout}
    _note('Tensor.to')
    return on_device(tensor.detach().to('cpu', dtype or tensor.dtype, copy=True, **wanted))
