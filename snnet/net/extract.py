"""One stitch as a plain module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..errors import SnnetError
from ..reparam import fold
from ..stitching.stitch import Stitch
from ..stitching.stitch_layer import StitchLayer
from .feature_levels import Level
from .joined_anchors import JoinedAnchors
from .preprocessing import timm_config
from .stitch_tensors import write_into_copy
from .timm_methods import LegRun, TimmMethods, reset_classifiers


class ExtractedStitch(TimmMethods):
    """One stitch as a plain module; anchors and stitch layers hold only what it needs.

    It has the methods of timm's networks, so timm's scripts run on it.

    Args:
        stitch: what it runs.
        anchors: one per leg, cut to it.
        layers: the stitch layers between them.
        levels: of its features, with indices into `level_layers` where they need any.
        level_layers: further stitch layers, which map features of fronts to the width of the end.
        config: how images are prepared (see `pretrained_cfg`).

    Attributes:
        several_labels: whether each logit says yes or no to its class by itself, as in the net.
    """

    def __init__(
        self,
        stitch: Stitch,
        anchors: Sequence[Anchor],
        layers: Sequence[StitchLayer],
        levels: Sequence[Level] = (),
        level_layers: Sequence[StitchLayer] = (),
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.training = anchors[0].training
        self.stitch = stitch
        self.anchors = nn.ModuleList(anchors)
        self.stitch_layers = nn.ModuleList(layers)
        self.feature_layers = nn.ModuleList(level_layers)
        self._levels, self._config = list(levels), dict(config or {})
        self.several_labels = False

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.leg_runs()[-1].anchor.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared and what the classes are, in the words of timm's pretrained configs."""
        return {**self._config, 'num_classes': self.num_classes}

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to logits (N, classes)."""
        for i, (anchor, leg) in enumerate(zip(self.anchors, self.stitch.legs, strict=True)):
            if i:
                x = self.stitch_layers[i - 1](x)
            x = anchor.run(x, leg.start, leg.stop)  # type: ignore[operator]  # ModuleList forgets its element type
        return x

    def leg_runs(self) -> list[LegRun]:
        """The legs."""
        runs = []
        for i, (anchor, leg) in enumerate(zip(self.anchors, self.stitch.legs, strict=True)):
            assert isinstance(anchor, Anchor)
            stop = len(anchor.line()) if leg.stop is None else leg.stop
            layer = self.stitch_layers[i - 1] if i else None
            runs.append(LegRun(anchor, leg.start, stop, layer, None, f'anchors.{i}'))
        return runs

    def feature_levels(self) -> list[Level]:
        """The levels of features."""
        return self._levels

    def level_layers(self, level: Level) -> list[nn.Module]:
        """The modules that map the features of a level to the width of the end.

        Raises:
            SnnetError: they were not cut out.
        """
        if level.tap.layers and not len(self.feature_layers):
            raise SnnetError(
                f'{self.stitch} was cut out without the stitch layers that map the features of its front to the width '
                f'of its end: net.extract(..., intermediates=True) takes them along'
            )
        return [self.feature_layers[index] for index in level.tap.layers]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the end a new classifier with random weights (see `StitchableNet.reset_classifier`)."""
        reset_classifiers([self.leg_runs()[-1].anchor], num_classes, global_pool)
        self._config.pop('label_names', None)
        self.several_labels = False

    def _depths(self, coarse: bool) -> dict[str, int]:
        depths, depth = dict[str, int](), 0
        for i, leg in enumerate(self.leg_runs()):
            survey, prefix = leg.anchor.survey, f'anchors.{i}.model.'
            if i == 0:
                depths |= {prefix + name: depth for name in survey.stem}
            else:
                named = self.stitch_layers[i - 1].named_parameters()
                depths |= {f'stitch_layers.{i - 1}.{name}': depth + 1 for name, _ in named}
            for names in survey.modules[leg.start : leg.stop]:
                depth += 0 if coarse else 1
                depths |= {prefix + name: depth for name in names}
            depth += 1 if coarse else 0
            depths |= {prefix + name: depth + 1 for name in survey.head | survey.published_head}
        there = dict(self.named_parameters())
        return {name: depth for name, depth in depths.items() if name in there}


def extract_stitch(net: JoinedAnchors, stitch: int, intermediates: bool = False) -> ExtractedStitch:
    """Cuts one stitch out of a net (see `StitchableNet.extract`)."""
    chosen, tables = net.stitches[stitch], net.tables(stitch)
    legs = [net.anchor(leg.anchor).cut(leg.start, leg.stop) for leg in chosen.legs]
    layers = [net.layer(index).merged() for index in chosen.layers]
    if tables is not None:
        for leg, twin, table in zip(chosen.legs, legs, tables, strict=True):
            write_into_copy(net.anchor(leg.anchor), twin, table)
        for index, layer, table in zip(chosen.layers, layers, tables[1:], strict=True):
            write_into_copy(net.layer(index), layer, table)
    levels, config = net.levels_of(stitch), timm_config(net)
    needed = sorted({index for level in levels for index in level.tap.layers})
    places = {index: place for place, index in enumerate(needed)}
    own = [
        replace(level, tap=replace(level.tap, layers=tuple(places[index] for index in level.tap.layers)))
        for level in levels
    ]
    further = [net.layer(index).merged() for index in needed] if intermediates else []
    extracted = ExtractedStitch(chosen, legs, layers, own, further, config)
    extracted.several_labels = net.several_labels
    return fold(extracted)
