"""A pretrained network that runs, is measured and is cut between any two positions of its line."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from ..errors import CannotStitch
from ..utils.eval_mode import still_statistics
from .boundary import Boundary
from .cut import cut_copy
from .network_line import NetworkLine
from .new_head import classifier_modules, new_head_modules
from .normalization import Normalization, Renormalize
from .survey import Survey, survey_line, survey_new_head


@dataclass(frozen=True)
class Source:
    """How `timm.create_model` makes the network again: `create_model(model, **args)`."""

    model: str
    args: dict[str, Any]


class Anchor(NetworkLine):
    """A pretrained network as a line; a subclass is the adapter of a family and gives four answers.

    The answers are `layout`, `stem`, `stages` and `head`; run in sequence they compute exactly what the model
    computes. The model keeps its parameter names (`model.blocks.3...`). Its modules are looked up at every run, so a
    block may be replaced at any time.

    Args:
        model: the network, untouched.
        name: what messages and stitches call it.
        input_size: channels, height and width of an input image.
        source: how to make the model again, needed only by `save_pretrained`.
        official: end stitches as the published implementation did (see `published_head`).

    Attributes:
        normalization: how its images were normalized in training; None where that is unknown.
        class_names: of the classes that its classifier tells apart, in the order of the logits; None where unknown.
        several_labels: whether its classifier says yes or no to each class, because images have several labels.
        renormalize: the map from the net's normalization to its own; None where they agree.
        frozen: whether `freeze` was called.
        keeps_statistics: whether BatchNorms normalize with their running statistics also in training.
        trains_head: whether the classifier of a frozen anchor is trained though it is not new.
        checkpointing: whether blocks run again in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        input_size: tuple[int, int, int],
        source: Source | None = None,
        official: bool = False,
    ) -> None:
        super().__init__(model, name, input_size)
        self.source = source
        self.official = official
        self.normalization = Normalization.of_model(model, input_size[0])
        self.class_names: tuple[str, ...] | None = None
        self.several_labels = False
        self.renormalize: Renormalize | None = None
        self.frozen = False
        self.keeps_statistics = False
        self.trains_head = False
        self.checkpointing = False

    def recipe(self) -> Source | None:
        """How to make the model again; None where nothing says so."""
        return self.source

    def run(self, x: Tensor, start: int | None = None, stop: int | None = None) -> Tensor:
        """Runs the modules from position `start` to position `stop`.

        Args:
            x: an image where `start` is None (the stem runs), else the features at `start`.
            start: a position, or None for the image.
            stop: a position, or None for the logits (the head runs).

        Raises:
            CannotStitch: a module on the way runs only on a grid of another size than that of `x`.
        """
        line = self.line()
        if self.has_grid_bound_modules:
            self._check_size(x, line, start, stop)
        if start is None:
            x = self.run_stem(x)
        recompute = self.checkpointing and torch.is_grad_enabled()
        for module in line[start:stop]:
            x = _recomputed(module, x) if recompute else module(x)
        if stop is not None:
            return x
        return self.published_head(x) if self.official and start is not None else self.head(x)

    def run_stem(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W), normalized as the net's images are, to the features at position 0."""
        return self.stem(x if self.renormalize is None else self.renormalize(x))

    def _check_size(self, x: Tensor, line: list[nn.Module], start: int | None, stop: int | None) -> None:
        own = self.input_size if start is None else self.boundaries[start].shape
        if tuple(x.shape[1:]) == own:
            return
        for position in range(len(line))[start:stop]:
            if self.is_grid_bound(position, line[position]):
                given, made = ('x'.join(str(int(n)) for n in shape) for shape in (x.shape[1:], own))
                what = type(line[position]).__name__
                raise CannotStitch(
                    f'{self.name}: {what} {position} of its line works for one size only: '
                    f'it takes {made} at position {start or "0 (images)"}, not {given}'
                )

    def forward(self, x: Tensor) -> Tensor:
        """The whole network: image (N, C, H, W) to logits (N, classes)."""
        return self.run(x)

    @property
    def boundaries(self) -> tuple[Boundary, ...]:
        """What flows at each position, measured once."""
        return self.survey.boundaries

    @cached_property
    def survey(self) -> Survey:
        """Boundaries, and the parameters that each part uses: measured once."""
        return survey_line(self)

    def forget_survey(self) -> None:
        """Measures boundaries and parameters again when they are next asked for, after modules were replaced."""
        self.__dict__.pop('survey', None)

    def survey_new_head(self) -> None:
        """Measures the parameters of the head again, after the classifier was replaced; all else stays as measured."""
        if 'survey' in self.__dict__:
            self.__dict__['survey'] = survey_new_head(self, self.survey)

    def parameter_names(self, start: int | None = None, stop: int | None = None) -> frozenset[str]:
        """Names (within the model) of the parameters that take part in `run(x, start, stop)`."""
        used = set(self.survey.stem if start is None else ()).union(*self.survey.modules[start:stop])
        if stop is None:
            used |= self.survey.published_head if self.official and start is not None else self.survey.head
        return frozenset(used)

    def cut(self, start: int | None = None, stop: int | None = None) -> Anchor:
        """A copy that holds only what `run(x, start, stop)` needs; positions stay as they are."""
        twin = cut_copy(self, start, stop, self.parameter_names(start, stop))
        if start is not None:
            twin.renormalize = None
        return twin

    def freeze(self, head: bool = True) -> None:
        """Freezes what is pretrained, and keeps it in eval mode even after `train()`.

        Args:
            head: freeze the classifier, too, unless it is new.
        """
        self.requires_grad_(False)
        self.frozen, self.trains_head = True, not head
        for module in self._trained_head():
            module.requires_grad_(True)
        self.eval()

    def train(self, mode: bool = True) -> Anchor:
        """Train or eval mode; a frozen anchor stays in eval mode (batch norms, drop path)."""
        super().train(mode and not self.frozen)
        if self.keeps_statistics:
            for module in self.pretrained_part().modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self.frozen:
            for module in self._trained_head():
                module.train(mode)
        return self

    def _trained_head(self) -> list[nn.Module]:
        """The modules that a frozen anchor trains."""
        return classifier_modules(self.model) if self.trains_head else new_head_modules(self.model)

    def pretrained_part(self) -> nn.Module:
        """What holds the modules that were trained before: all of the network."""
        model: nn.Module = self.model
        return model

    def __repr__(self) -> str:
        spans = ' + '.join(str(len(span)) for span in self.blocks())
        return f'{type(self).__name__}({self.name}: {spans} blocks, {self.num_classes} classes)'


def _recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module without keeping its activations: the backward pass computes them again."""
    y: Tensor = checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), still_statistics(module)))
    return y
