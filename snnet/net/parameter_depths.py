"""How deep each parameter of a net lies, for learning rates by layer."""

from __future__ import annotations

from .joined_anchors import JoinedAnchors


def parameter_depths(net: JoinedAnchors, coarse: bool) -> dict[str, int]:
    """The depth of each parameter by name: 0 for stems, and so on to the heads, which lie deepest.

    Shallower anchors are spread over the depth of the deepest one, and stitch layers lie where their end begins.

    Args:
        net: the net.
        coarse: one depth for all blocks, rather than one for each.
    """
    anchors = [net.anchor(i) for i in range(len(net.anchors))]
    deepest, depths = max(len(anchor.line()) for anchor in anchors), dict[str, int]()
    for i, anchor in enumerate(anchors):
        count = len(anchor.line())
        for position, names in enumerate(anchor.survey.modules):
            depth = 1 if coarse else 1 + round(position * (deepest - 1) / max(1, count - 1))
            depths |= {f'anchors.{i}.model.{name}': depth for name in names}
        depths |= {f'anchors.{i}.model.{name}': 0 for name in anchor.survey.stem}
        head = 2 if coarse else deepest + 1
        depths |= {f'anchors.{i}.model.{name}': head for name in anchor.survey.head | anchor.survey.published_head}
    for stitch in net.stitches:
        for leg, layer in zip(stitch.legs[1:], stitch.layers, strict=True):
            count = len(net.anchor(leg.anchor).line())
            depth = 1 if coarse else 1 + round((leg.start or 0) * (deepest - 1) / max(1, count - 1))
            named = net.layer(layer).named_parameters()
            depths |= {f'stitch_layers.{layer}.{name}': min(depth, deepest) for name, _ in named}
    return depths
