"""The methods of timm's networks, for a net (its active stitch) and for a stitch that was cut out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..anchors.new_head import classifier_modules, mark_new_head
from ..errors import SnnetError, reason_of
from ..stitching.layout import to_layout
from ..utils.whole_number import whole_number
from .feature_levels import Level
from .stitch_tensors import Table, computing_with


@dataclass(frozen=True)
class LegRun:
    """A leg that runs.

    Attributes:
        anchor: what runs.
        start: its first position; None for the image.
        stop: its last position, before the head where the leg is the last one.
        layer: the stitch layer in front of it, if any.
        table: tensors that the stitch has in place of the leg's, if any.
        name: of the anchor among the modules of the network.
    """

    anchor: Anchor
    start: int | None
    stop: int
    layer: nn.Module | None
    table: Table | None
    name: str

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it, the leg computes with the tensors of the stitch."""
        if self.table is None:
            yield
        else:
            with computing_with(self.table):
                yield

    def enter(self, x: Tensor) -> Tensor:
        """Applies the stitch layer."""
        with self.computing():
            return x if self.layer is None else self.layer(x)

    def run(self, x: Tensor, start: int | None, stop: int) -> Tensor:
        """Runs a part of the leg."""
        with self.computing():
            return self.anchor.run(x, start, stop)


class TimmMethods(nn.Module):
    """What timm's scripts and dense heads ask of a network; subclasses say which legs run."""

    @abstractmethod
    def leg_runs(self) -> list[LegRun]:
        """The legs that run now."""

    @abstractmethod
    def feature_levels(self) -> list[Level]:
        """The levels of features of the stitch that runs now."""

    @abstractmethod
    def level_layers(self, level: Level) -> list[nn.Module]:
        """The modules that map the features of a level to the width of the end."""

    @property
    @abstractmethod
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared and what the classes are, in the words of timm's pretrained configs."""

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The older name of `pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def num_features(self) -> int:
        """Width of what `forward_features` gives."""
        end = self.leg_runs()[-1].anchor
        return end.boundaries[-1].channels

    @property
    def head_hidden_size(self) -> int:
        """Width of what goes into the classifier."""
        end = self.leg_runs()[-1].anchor
        widths = {module.in_features for module in classifier_modules(end.model) if isinstance(module, nn.Linear)}
        return widths.pop() if len(widths) == 1 else int(getattr(end.model, 'head_hidden_size', self.num_features))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Width, reduction and place of each level that `forward_intermediates` gives; timm's keys."""
        name, height = self.leg_runs()[-1].name, self.leg_runs()[-1].anchor.input_size[1]
        return [
            {
                'num_chs': level.boundary.channels,
                'reduction': height // level.boundary.grid[0],
                'module': f'{name}[:{level.position}]',
            }
            for level in self.feature_levels()
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to features before pooling, as timm's network of the end gives them."""
        runs = self.leg_runs()
        for leg in runs:
            x = leg.run(leg.enter(x), leg.start, leg.stop)
        with runs[-1].computing():
            end, stitched = runs[-1].anchor, len(runs) > 1
            return end.published_tail(x) if end.official and stitched else end.tail(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features of `forward_features` to logits (N, classes).

        Args:
            x: features.
            pre_logits: give what goes into the classifier instead.

        Raises:
            SnnetError: `pre_logits`, and the end does not say which module its classifier is.
        """
        end = self.leg_runs()[-1]
        with end.computing():
            return end.anchor.classify(x, pre_logits)

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, return_prefix_tokens: bool = False,
        norm: bool = False, stop_early: bool = False, output_fmt: str = 'NCHW', intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """Features of several levels (see `feature_info`), with the widths of the end whatever the stitch.

        Args:
            x: images (N, C, H, W).
            indices: of the levels; the last so many where it is one number, all where None.
            return_prefix_tokens: give pairs (features, prefix tokens) where the line has class or register tokens.
            norm: apply the final norm to each level, where the end has one stage only.
            stop_early: do not run what comes after the last level; only with `intermediates_only`.
            output_fmt: 'NCHW', or 'NLC' for sequences.
            intermediates_only: leave out the features of `forward_features`.

        Returns:
            The features of `forward_features` and a list with those of each level; or that list alone.

        Raises:
            SnnetError: an index or a format that does not exist, or a stitch that was cut out without intermediates.
        """
        if output_fmt not in ('NCHW', 'NLC') or (stop_early and not intermediates_only):
            raise SnnetError("output_fmt is 'NCHW' or 'NLC', and stop_early needs intermediates_only=True")
        levels = self.feature_levels()
        try:
            wanted = [levels[i] for i in feature_take_indices(len(levels), indices)[0]]
        except (AssertionError, ValueError) as error:
            raise SnnetError(f'there are {len(levels)} levels of features: {reason_of(error)}') from None
        maps = [self.level_layers(level) for level in wanted]
        x, found = self._tapped(x, wanted, stop_early)
        end, given = self.leg_runs()[-1].anchor, []
        for level, layers in zip(wanted, maps, strict=True):
            y = found[level.tap.leg, level.tap.position]
            for layer in layers:
                y = layer(y)
            y = end.tail(y) if norm and len(end.blocks()) == 1 else y
            given.append(_formatted(y, level.boundary, output_fmt, return_prefix_tokens))
        return given if intermediates_only else (x, given)

    def _tapped(self, x: Tensor, wanted: Sequence[Level], stop_early: bool) -> tuple[Tensor, dict[Any, Tensor]]:
        """Runs the legs; returns the features at the end and those at each tap, by leg and position."""
        runs, found = self.leg_runs(), dict[tuple[int, int], Tensor]()
        last = max(level.tap.leg for level in wanted)
        for i, leg in enumerate(runs):
            x, at = leg.enter(x), leg.start
            for position in sorted({level.tap.position for level in wanted if level.tap.leg == i}):
                x, at = leg.run(x, at, position), position
                found[i, position] = x.clone()  # because what follows may write into its input
            if stop_early and i == last:
                return x, found
            x = leg.run(x, at, leg.stop)
        with runs[-1].computing():
            end = runs[-1].anchor
            return (end.published_tail(x) if end.official and len(runs) > 1 else end.tail(x)), found

    def get_classifier(self) -> nn.Module:
        """The classifier of the end; the first where there are several.

        Raises:
            SnnetError: the end does not say which module it is.
        """
        end = self.leg_runs()[-1].anchor
        for module in classifier_modules(end.model):
            return module
        raise SnnetError(f'{end.name} does not say which module its classifier is (get_classifier)')

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Lets blocks run again in the backward pass instead of keeping their activations."""
        for leg in self._all_anchors():
            leg.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's networks exempt from weight decay."""
        return {
            f'{name}.{exempt}'
            for name, anchor in self._named_anchors()
            for exempt in getattr(anchor.model, 'no_weight_decay', set)()
        }

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For layer-wise learning rates: from the name of a parameter to the depth where it runs.

        Args:
            coarse: one group for each leg, rather than for each block.
        """
        depths = self._depths(coarse)
        deepest = max(depths.values(), default=0)
        return lambda name: depths.get(name, deepest)

    @abstractmethod
    def _depths(self, coarse: bool) -> dict[str, int]:
        """The depth of each parameter by name: 0 for a stem, and so on to the head."""

    def _named_anchors(self) -> list[tuple[str, Anchor]]:
        return [
            (f'anchors.{i}.model', anchor)
            for i, anchor in enumerate(self.get_submodule('anchors').children())
            if isinstance(anchor, Anchor)
        ]

    def _all_anchors(self) -> list[Anchor]:
        return [anchor for _, anchor in self._named_anchors()]


def reset_classifiers(anchors: Sequence[Anchor], num_classes: int, global_pool: str | None) -> None:
    """Gives anchors new classifiers, with random weights.

    Raises:
        SnnetError: a network that cannot, another kind of pooling than it knows, or a number of classes below 0.
    """
    given = {} if global_pool is None else {'global_pool': global_pool}
    num_classes = whole_number('num_classes', num_classes, 0)
    for anchor in anchors:
        if not hasattr(anchor.model, 'reset_classifier'):
            raise SnnetError(f'{anchor.name} has no reset_classifier, so its classifier stays as it is')
        try:
            anchor.model.reset_classifier(num_classes, **given)
        except (AssertionError, TypeError, ValueError, KeyError) as error:
            raise SnnetError(f'{anchor.name} refuses another classifier: {reason_of(error)}') from None
        weight = next(anchor.parameters(), None)
        if weight is not None:
            anchor.to(weight.device, weight.dtype)
        mark_new_head(anchor.model)
        anchor.class_names, anchor.several_labels = None, False
        anchor.clear_caches()
        anchor.survey_new_head()


def _formatted(y: Tensor, boundary: Boundary, layout: str, return_prefix_tokens: bool) -> Any:
    """Features in a layout, without prefix tokens or beside them."""
    prefix, y = (y[:, : boundary.prefix], y[:, boundary.prefix :]) if boundary.prefix else (None, y)
    y = to_layout(y, boundary, layout)
    return (y, prefix) if return_prefix_tokens and prefix is not None else y
