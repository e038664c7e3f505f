"""One stitch as a plain module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..reparam import fold
from ..stitching.stitch import Stitch
from ..stitching.stitch_layer import StitchLayer
from .stitch_tensors import bake

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet


class ExtractedStitch(nn.Module):
    """One stitch as a plain module; anchors and stitch layers hold only what it needs.

    Args:
        stitch: what it runs.
        anchors: one per leg, cut to it.
        layers: the stitch layers between them.
    """

    def __init__(self, stitch: Stitch, anchors: Sequence[Anchor], layers: Sequence[StitchLayer]) -> None:
        super().__init__()
        self.training = anchors[0].training
        self.stitch = stitch
        self.anchors = nn.ModuleList(anchors)
        self.stitch_layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to logits (N, classes)."""
        for i, (anchor, leg) in enumerate(zip(self.anchors, self.stitch.legs, strict=True)):
            if i:
                x = self.stitch_layers[i - 1](x)
            x = anchor.run(x, leg.start, leg.stop)  # type: ignore[operator]  # ModuleList forgets its element type
        return x


def extract_stitch(net: StitchableNet, stitch: int) -> ExtractedStitch:
    """Cuts one stitch out of a net (see `StitchableNet.extract`)."""
    chosen, tables = net.stitches[stitch], net.tables(stitch)
    legs = [net.anchor(leg.anchor).cut(leg.start, leg.stop) for leg in chosen.legs]
    layers = [net.layer(index).merged() for index in chosen.layers]
    if tables is not None:
        for leg, twin, table in zip(chosen.legs, legs, tables, strict=True):
            bake(net.anchor(leg.anchor), twin, table)
        for index, layer, table in zip(chosen.layers, layers, tables[1:], strict=True):
            bake(net.layer(index), layer, table)
    return fold(ExtractedStitch(chosen, legs, layers))
