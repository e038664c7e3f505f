"""Multiply-adds of operations that multiply as a matrix product does, and that fvcore does not count or only rounds.

Each handle gets the inputs and outputs of an operation in torch's trace, as fvcore hands them over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Handle = Callable[[Sequence[Any], Sequence[Any]], int]


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _shapes(values: Any) -> list[list[int]]:
    """Shapes of the tensors in a list."""
    return [_shape(value) for value in values.node().inputs()]


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Query (..., L, E) times key (..., S, E), then times value (..., S, V)."""
    query, key, value = (_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _added_batched_product(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Matrices (N, L, K) times (N, K, M), added to a third."""
    left, right = _shape(inputs[1]), _shape(inputs[2])
    return math.prod(left) * right[-1]


def _matrix_vector(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A matrix (L, K) times a vector (K), or two vectors."""
    return math.prod(_shape(inputs[0]))


def _added_matrix_vector(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A matrix (L, K) times a vector (K), added to a third."""
    return math.prod(_shape(inputs[1]))


def _inner(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Vectors (..., K) with vectors (..., K), each with each."""
    left, right = _shape(inputs[0]), _shape(inputs[1])
    return math.prod(left) * math.prod(right[:-1]) if left and right else 0


def _tensordot(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Two tensors, summed over some dimensions of both: the square root of all sizes, where each comes twice."""
    return math.isqrt(math.prod(size for value in (inputs[0], inputs[1], outputs[0]) for size in _shape(value)))


def _bilinear(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Pairs of vectors (..., K) and (..., M) through a weight (L, K, M)."""
    return math.prod(_shape(inputs[0])[:-1]) * math.prod(_shape(inputs[2]))


def _deformed_convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A convolution with a weight (L, K, H, W) whose samples are moved; moving them counts nothing."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _recurrent(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A sequence (N, L, K) through recurrent layers: each of their matrices multiplies once at every step."""
    steps = math.prod(_shape(inputs[0])[:-1])
    return steps * sum(math.prod(shape) for shape in _shapes(inputs[2]) if len(shape) == 2)


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Einstein's sum, two operands at a time, as torch does it: without a path, from left to right."""
    terms, output = _terms(inputs[0].toIValue(), shapes := _shapes(inputs[1]))
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # a size of 1 is repeated
    path = inputs[2].toIValue() if len(inputs) > 2 else None
    operands, flops = list(map(frozenset, terms)), 0
    for i in range(len(operands) - 1):
        first, second = (0, 1) if path is None else sorted(path[2 * i : 2 * i + 2])
        right, left = operands.pop(second), operands.pop(first)
        kept = frozenset(output).union(*operands)
        left, right = left & (kept | right), right & (kept | left)  # what only one of them has is summed before
        if (left & right) - kept:
            flops += math.prod(sizes[letter] for letter in left | right)
        both = (left | right) & kept
        operands = [both, *operands] if path is None else [*operands, both]
    return flops


def _terms(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str]:
    """The letters of every operand of an einsum and of its result; dots become letters that nobody writes."""
    operands, arrow, output = equation.replace(' ', '').partition('->')
    terms, most = [], 0
    for term, shape in zip(operands.split(','), shapes, strict=True):
        hidden = len(shape) - len(term) + 3 if '...' in term else 0
        most = max(most, hidden)
        terms.append(term.replace('...', ''.join(chr(0xE000 + hidden - i) for i in range(hidden))))
    dots = ''.join(chr(0xE000 + most - i) for i in range(most))
    if arrow:
        return terms, output.replace('...', dots)
    letters = ''.join(terms)
    return terms, dots + ''.join(sorted(letter for letter in set(letters) - set(dots) if letters.count(letter) == 1))


HANDLES: Mapping[str, Handle] = {
    'aten::scaled_dot_product_attention': _attention,
    **dict.fromkeys(('aten::baddbmm', 'aten::addbmm'), _added_batched_product),
    **dict.fromkeys(('aten::mv', 'aten::dot', 'aten::vdot'), _matrix_vector),
    'aten::addmv': _added_matrix_vector,
    'aten::inner': _inner,
    'aten::tensordot': _tensordot,
    'aten::bilinear': _bilinear,
    'aten::einsum': _einsum,
    'torchvision::deform_conv2d': _deformed_convolution,
    **dict.fromkeys(('aten::lstm', 'aten::gru', 'aten::rnn_tanh', 'aten::rnn_relu'), _recurrent),
}
"""How each operation of these names is counted, per image."""
