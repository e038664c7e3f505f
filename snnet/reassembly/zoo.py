"""The zoo: which networks can be compared, and the size of the modules of their lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..anchors.anchor import Anchor
from ..anchors.flops import PartFlops, part_flops
from ..errors import SnnetError
from ..saving.anchor_rows import describe_anchor
from ..utils.digest import digest_of_tensors
from ..utils.seeds import key, seeded_libraries

SIZES = ('flops', 'nodes', 'params')
"""Measures of the size of a block: multiply-adds, modules of the line (the paper's nodes), or parameters."""


def check_zoo(anchors: Sequence[Anchor]) -> None:
    """Refuses networks that cannot be compared.

    Raises:
        SnnetError: fewer than two, two with the same name, or different image sizes.
        CannotStitch: a network that does not run as a line at its image size.
    """
    names = [anchor.name for anchor in anchors]
    if len(names) < 2:
        raise SnnetError(f'a zoo needs at least two networks to take blocks from, {len(names)} given')
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SnnetError(f"two networks of the zoo are called '{twice}': give them different names")
    kinds: dict[tuple[int, ...], list[str]] = {}
    for anchor in anchors:
        kinds.setdefault(tuple(anchor.input_size), []).append(anchor.name)
    if len(kinds) > 1:
        listed = '; '.join(f'{"x".join(map(str, size))}: {", ".join(who)}' for size, who in kinds.items())
        raise SnnetError(
            f'the networks of a zoo must take images of the same size, but these differ ({listed}): set one img_size'
        )
    for anchor in anchors:
        _ = anchor.boundaries  # runs it once, and raises if it does not run


def line_sizes(
    anchors: Sequence[Anchor], measure: str = 'flops', parts: Mapping[str, PartFlops] | None = None
) -> dict[str, tuple[int, ...]]:
    """The size of every module of every line, by name of the network.

    Args:
        anchors: the zoo.
        measure: one of `SIZES`.
        parts: `part_flops` of the networks by name, if they have been counted before.

    Raises:
        SnnetError: an unknown measure.
    """
    if measure not in SIZES:
        raise SnnetError(f"the size of a block must be measured in one of {', '.join(SIZES)}, not '{measure}'")
    if measure == 'flops':
        counted = parts or {anchor.name: part_flops(anchor) for anchor in anchors}
        return {anchor.name: counted[anchor.name].modules for anchor in anchors}
    if measure == 'nodes':
        return {anchor.name: (1,) * len(anchor.line()) for anchor in anchors}
    return {a.name: tuple(leg_params(a, p, p + 1) for p in range(len(a.line()))) for a in anchors}


def leg_params(anchor: Anchor, start: int | None, stop: int | None) -> int:
    """Number of parameters that take part in `anchor.run(x, start, stop)`."""
    sizes = {name: p.numel() for name, p in anchor.model.named_parameters(remove_duplicate=False)}
    return sum(sizes[name] for name in anchor.parameter_names(start, stop))


def weight_digests(anchors: Sequence[Anchor]) -> dict[str, str]:
    """A SHA-256 digest of the weights of each network, by name.

    Raises:
        SnnetError: two networks have the same weights.
    """
    found: dict[str, str] = {}
    for anchor in anchors:
        digest = digest_of_tensors(anchor.model.state_dict(), type(anchor.model).__name__)
        same = next((other for other, value in found.items() if value == digest), None)
        if same:
            raise SnnetError(f'{same} and {anchor.name} are the same network under two names: a zoo holds each once')
        found[anchor.name] = digest
    return found


def with_random_weights(zoo: Mapping[str, Anchor], seed: int) -> dict[str, Anchor]:
    """The networks of a zoo as they are before any training, also those whose weights came from a file.

    Args:
        zoo: networks by name.
        seed: of the random weights.

    Raises:
        SnnetError: nothing says how a network was made.
    """
    fresh = {}
    for i, (name, anchor) in enumerate(zoo.items()):
        with seeded_libraries(key(seed, 'random zoo', i)):
            fresh[name] = describe_anchor(anchor).build().eval()
    return fresh
