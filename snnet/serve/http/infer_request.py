"""A request of the Open Inference Protocol v2: a table of JSON, with tensors in it or as bytes behind it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import reason_of
from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from .decode_image import check_images
from .http_limits import HttpLimits
from .request_options import NUMBERS, RequestOptions, options_of

INPUT, LOGITS, STITCH = 'images', 'logits', 'stitch'
TYPES = {'FP16': '<f2', 'FP32': '<f4', 'FP64': '<f8'}
_IGNORED = ('binary_data_output', 'priority')
"""Parameters that change nothing here, or that are read elsewhere."""


@dataclass(frozen=True)
class InferRequest:
    """A request of the protocol.

    Attributes:
        id: what the client calls it; '' where it does not.
        options: what it asks for.
        images: each (C, H, W), prepared.
        outputs: names of the outputs that are wanted, and whether each is wanted as bytes.
    """

    id: str
    options: RequestOptions
    images: list[Tensor]
    outputs: dict[str, bool]


def parse_infer(
    body: bytes, header_length: str | None, served: ServedNet, limits: HttpLimits, deadline_ms: float
) -> InferRequest:
    """The request in a body.

    Args:
        body: JSON, and the bytes of tensors behind it.
        header_length: bytes of the JSON; None where the body is all JSON.
        served: the net.
        limits: most images.
        deadline_ms: deadline where none is given.

    Raises:
        Refusal: it is malformed, or asks for what this net does not have.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    table = _table(body[:length])
    parameters = _entry(table, 'parameters', dict, {})
    inputs = _entry(table, 'inputs', list, None)
    if len(inputs) != 1 or not isinstance(inputs[0], dict) or inputs[0].get('name') != INPUT:
        raise Refusal('invalid', f"a request has one input, named '{INPUT}'")
    images = check_images(_array(inputs[0], body[length:]), served, limits)
    outputs = _outputs(_entry(table, 'outputs', list, []), parameters.get('binary_data_output') is True)
    return InferRequest(_entry(table, 'id', str, ''), _options(parameters, deadline_ms), images, outputs)


def _length(text: str, total: int) -> int:
    if not text.isdecimal() or len(text) > 12 or int(text) > total:
        raise Refusal('invalid', f'the JSON of a body of {total} bytes cannot have a length of {text[:20]!r}')
    return int(text)


def _table(data: bytes) -> dict[str, Any]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal('invalid', f'the body is not valid JSON: {reason_of(error)[:200]}') from None
    if not isinstance(table, dict):
        raise Refusal('invalid', 'the body is not a table of JSON')
    return table


def _entry(table: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = table.get(name, default)
    if not isinstance(value, kind):
        words: dict[type, str] = {dict: 'a table', list: 'a list', str: 'a text'}
        raise Refusal('invalid', f"'{name}' of a request is {words[kind]}")
    return value


def _array(tensor: dict[str, Any], behind: bytes) -> np.ndarray[Any, Any]:
    """The array of an input, from its list of numbers or from the bytes behind the JSON."""
    shape, kind = tensor.get('shape'), tensor.get('datatype')
    if not isinstance(kind, str) or kind not in TYPES:
        raise Refusal('invalid', f'the datatype of an input is {", ".join(TYPES)}, not {str(kind)[:40]!r}')
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise Refusal('invalid', f'the shape of an input is a list of at most 8 integers, not {str(shape)[:60]}')
    dtype = np.dtype(TYPES[kind])
    if 'data' in tensor:
        try:
            with np.errstate(over='ignore'):  # what is too large becomes infinite, and is refused as such
                values = np.asarray(tensor['data'], dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise Refusal('invalid', f'the data of an input are numbers: {reason_of(error)[:200]}') from None
        if values.size != math.prod(shape):
            raise Refusal('invalid', f'a tensor of shape {shape} has {math.prod(shape)} values, not {values.size}')
        return values.reshape(shape)
    parameters = tensor.get('parameters')
    size = parameters.get('binary_data_size') if isinstance(parameters, dict) else None
    if type(size) is not int or size != len(behind):
        raise Refusal('invalid', f'an input has data, or binary_data_size, which is {len(behind)} here')
    needed = math.prod(shape) * dtype.itemsize
    if needed != size:
        raise Refusal('invalid', f'a tensor of shape {shape} needs {needed} bytes, not {size}')
    return np.frombuffer(behind, dtype).reshape(shape)


def _outputs(wanted: list[Any], binary: bool) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for output in wanted:
        name = output.get('name') if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in (LOGITS, STITCH):
            raise Refusal('invalid', f"outputs are '{LOGITS}' and '{STITCH}', not {str(name)[:40]!r}")
        parameters = output.get('parameters') or {}
        if not isinstance(parameters, dict) or set(parameters) - {'binary_data'}:
            raise Refusal('invalid', "the only parameter of an output is 'binary_data'")
        found[name] = parameters.get('binary_data', binary) is True
    return found or {LOGITS: binary, STITCH: binary}


def _options(parameters: dict[str, Any], deadline_ms: float) -> RequestOptions:
    """Options from the parameters; the `timeout` of the protocol's clients, in microseconds, is a deadline."""
    values = {name: value for name, value in parameters.items() if name not in _IGNORED}
    timeout = values.pop('timeout', None)
    if timeout is not None and 'deadline_ms' not in values:
        if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 < timeout < 2**53:
            raise Refusal('invalid', f'timeout is a number of microseconds, not {str(timeout)[:40]!r}')
        values['deadline_ms'] = timeout / 1000
    for name in values:
        if name not in NUMBERS[:-1]:
            raise Refusal('invalid', f'parameters are {", ".join((*NUMBERS[:-1], "timeout"))}, not {name[:40]!r}')
    return options_of(values.items(), deadline_ms)
