"""A whole net that names images and is a network of timm: its active stitch answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ..anchors.class_names import checked_names
from .embeddings import embed, make_projections
from .feature_levels import FeatureLevels, Level
from .predict import Picture, Prediction, predict
from .preprocessing import timm_config
from .timm_methods import LegRun, TimmMethods, reset_classifiers

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet


class NetAsTimm(TimmMethods):
    """The methods of timm's networks for a `StitchableNet`; those that run or describe one network mean the active one.

    `set_stitch` and `using` choose it, as for `forward`.
    """

    _class_names: tuple[str, ...] | None = None

    @property
    def _net(self) -> StitchableNet:
        return cast('StitchableNet', self)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits, saved with the net; None where nothing says them.

        They are known of timm's weights for ImageNet and after training on folders. Assign a list to set them.

        Raises:
            SnnetError: where another number of names is assigned than there are classes, or one is not printable.
        """
        names = self._class_names
        return names if names and len(names) == self._net.num_classes else None  # the classifiers may be others by now

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._class_names = None if names is None else checked_names(names, self._net.num_classes)

    def predict(
        self, images: Picture | Iterable[Picture], *, stitch: int | None = None, topk: int = 5, batch_size: int = 32,
    ) -> list[Prediction]:  # fmt: skip
        """The most probable classes of images, with their names where the net has `class_names`.

        Files, images of Pillow and pixels are resized, cropped and normalized as the net expects.

        Args:
            images: one image or any number of them: files, images of Pillow, arrays of pixels (height, width, 3) of
                type uint8, tensors of pixels (3, height, width) of type uint8, or normalized tensors
                (channels, height, width); also a batch as one array or tensor.
            stitch: id of the stitch to run; the active one where None.
            topk: how many classes per image.
            batch_size: images per run.

        Returns:
            A prediction per image, in their order.

        Raises:
            SnnetError: an image that cannot be read (the message names it) or that has another shape or type, or a
                net without classes.
            UnknownStitch: no such id.
        """
        return predict(self._net, images, stitch, topk, batch_size)

    def embed(self, images: Picture | Iterable[Picture], *, stitch: int | None = None, batch_size: int = 32) -> Tensor:
        """Embeddings of images (N, width) from a net without classes, of one width whatever the stitch.

        The width is that of the largest anchor. Embeddings of stitches that end in another anchor are mapped to it by
        what `snnet.fit_embeddings` fitted. They are not normalized to unit length.

        Args:
            images: as for `predict`.
            stitch: id of the stitch to run; the active one where None.
            batch_size: images per run.

        Raises:
            SnnetError: a net with classes, embeddings of another width that were not fitted yet, or an image that
                cannot be read (the message names it).
            UnknownStitch: no such id.
        """
        return embed(self._net, images, stitch, batch_size)

    def leg_runs(self) -> list[LegRun]:
        """The legs of the active stitch."""
        net = self._net
        stitch, tables = net.stitches[net.active], net.tables(net.active)
        runs = []
        for i, leg in enumerate(stitch.legs):
            anchor = net.anchor(leg.anchor)
            layer = net.layer(stitch.layers[i - 1]) if i else None
            stop = len(anchor.line()) if leg.stop is None else leg.stop
            name = f'anchors.{net.index_of(leg.anchor)}'
            runs.append(LegRun(anchor, leg.start, stop, layer, tables[i] if tables else None, name))
        return runs

    def feature_levels(self) -> list[Level]:
        """The levels of features of the active stitch."""
        net = self._net
        found: FeatureLevels | None = vars(net).get('_feature_levels')
        if found is None:
            names = {anchor.name: anchor for anchor in map(net.anchor, range(len(net.anchors)))}
            found = vars(net)['_feature_levels'] = FeatureLevels(net.stitches, names)
        return found.of(net.stitches[net.active])

    def level_layers(self, level: Level) -> list[nn.Module]:
        """The stitch layers that map the features of a level to the width of the end."""
        return [self._net.layer(index) for index in level.tap.layers]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared and what the classes are, in the words of timm's pretrained configs."""
        return timm_config(self._net)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives every anchor a new classifier with random weights.

        Accuracies, statistics and latency tables are dropped; class names, too.

        Args:
            num_classes: width of the logits; 0 for embeddings (see `embed`).
            global_pool: another kind of pooling, in timm's words, where the networks know it.

        Raises:
            SnnetError: a network that cannot, or refuses this pooling.
        """
        net = self._net
        reset_classifiers([net.anchor(i) for i in range(len(net.anchors))], num_classes, global_pool)
        net.class_names = None
        net.projections = make_projections([net.anchor(i) for i in range(len(net.anchors))])
        net.known.verified(net, thorough=True).follow_modules(net)

    def _depths(self, coarse: bool) -> dict[str, int]:
        net = self._net
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
