"""What there is to know of a saved net, in print."""

from __future__ import annotations

from collections.abc import Iterator

from ..budget.frontier import table
from ..config.settings import InfoSettings
from ..net.hardware import setup_of
from ..net.stitchable_net import StitchableNet
from ..reassembly import ReassembledAnchor
from ..utils.plugins import import_plugins


def run(settings: InfoSettings) -> None:
    """Prints what is known of the net in a folder."""
    import_plugins(settings.plugin)
    print('\n'.join(describe(StitchableNet.from_pretrained(settings.folder))))


def describe(net: StitchableNet) -> Iterator[str]:
    """Lines on the anchors, the stitches, the frontier, and the tables of latency at hand."""
    size = 'x'.join(map(str, net.input_size))
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    yield f'{net.title}: {len(net.stitches)} stitches, {millions:.4g} Mparams, images {size}, {net.num_classes} classes'
    for record, anchor in zip(net.records, map(net.anchor, range(len(net.anchors))), strict=False):
        own = 'reassembled' if isinstance(anchor, ReassembledAnchor) else 'not made by timm'
        made_by = f'timm {anchor.source.model}' if anchor.source else own
        yield f'  anchor {anchor.name} ({made_by}): {_costs(record.flops, record.params)}'
    recalibrated = net.statistics.stitches if net.statistics else []
    if recalibrated:
        yield f'{len(recalibrated)} stitches have BatchNorm statistics of their own'
    if any(record.top1 is not None for record in net.records):
        yield from table(net.records).splitlines()
    else:
        yield 'no stitch has been evaluated yet (eval_stitches.py does)'
    if not net.latency_tables:
        yield 'no table of latencies (snnet profile makes one)'
    for latencies in net.latency_tables:
        differences = latencies.setup.differences(setup_of(net))
        holds = f'does not hold here: {differences}' if differences else 'holds here'
        yield f'latencies, {latencies}; {holds}'


def _costs(flops: int | None, params: int | None) -> str:
    return f'{(flops or 0) / 1e9:.4g} GFLOPs, {(params or 0) / 1e6:.4g} Mparams'
