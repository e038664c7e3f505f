"""`snnet info FOLDER`: prints what is known of a saved net."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.sections import option

if TYPE_CHECKING:
    from ..net.stitchable_net import StitchableNet


@dataclass
class InfoSettings:
    """Settings of `snnet info`."""

    folder: str = option('', 'folder of a saved net, or its id on the Hub')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: InfoSettings) -> None:
    """Prints what is known of the net in a folder.

    Raises:
        SnnetError: the folder holds no net.
    """
    from ..net.stitchable_net import StitchableNet  # here, so that --help does not load torch
    from ..utils.plugins import import_plugins

    import_plugins(settings.plugin)
    print('\n'.join(describe(StitchableNet.from_pretrained(settings.folder))))


def describe(net: StitchableNet) -> Iterator[str]:
    """Lines about the anchors, the stitches, the frontier and the latency tables of a net."""
    from ..budget.frontier import frontier_table
    from ..net.hardware import setup_of

    size = 'x'.join(map(str, net.input_size))
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    yield f'{net.title}: {len(net.stitches)} stitches, {millions:.4g} Mparams, images {size}, {net.num_classes} classes'
    yield from _describe_anchors(net)
    if net.class_names:
        shown = ', '.join(net.class_names[:5])
        yield f'  classes: {shown}{", ..." if len(net.class_names) > 5 else ""}'
    if net.several_labels:
        yield '  images have several labels: each logit says yes or no to its class'
    if net.statistics:
        own = sum(share > 0 for share in net.statistics.shares.values())
        yield f'{own} of {len(net.statistics.shares)} recalibrated stitches have their own BatchNorm statistics'
    if net.own_parameters:
        own, count = len(net.own_parameters.stitches), net.own_parameters.count() / 1e6
        yield f'{own} of {len(net.stitches)} stitches have parameters of their own, {count:.4g} M together'
    if any(record.top1 is not None for record in net.records):
        yield from frontier_table(net.records).splitlines()
    else:
        yield 'no stitch has been evaluated yet (eval_stitches.py measures accuracy)'
    if not net.latency_tables:
        yield 'no latency table yet (snnet profile makes one)'
    for latencies in net.latency_tables:
        differences = latencies.setup.differences(setup_of(net))
        valid = f'not valid here: {differences}' if differences else 'valid here'
        yield f'latency table, {latencies}; {valid}'


def _describe_anchors(net: StitchableNet) -> Iterator[str]:
    from ..reassembly.reassembled_anchor import ReassembledAnchor

    for i, record in enumerate(net.records[: len(net.anchors)]):
        anchor = net.anchor(i)
        origin = 'reassembled' if isinstance(anchor, ReassembledAnchor) else 'not made by timm'
        if anchor.source:
            origin = f'timm {anchor.source.model}'
        costs = f'{(record.flops or 0) / 1e9:.4g} GFLOPs, {(record.params or 0) / 1e6:.4g} Mparams'
        yield f'  anchor {anchor.name} ({origin}): {costs}'
