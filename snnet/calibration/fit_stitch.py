"""Fits what a stitch has for itself: its stitch layers, and scales and shifts behind the join."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..net.extract import ExtractedStitch
from ..net.own_parameters import names_behind
from ..net.stitchable_net import StitchableNet
from ..utils.seeds import generator
from .blended_images import BlendedImages
from .divergence import divergence

_WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; it falls along a cosine afterwards."""


@dataclass(frozen=True)
class FitSettings:
    """How a stitch is fitted.

    Attributes:
        steps: updates.
        batch_size: images per step.
        lr: highest learning rate of AdamW; whole weights of blocks take a third of it.
        temperature: by which logits are divided in the loss.
        ways: numbers of modules behind each join whose whole weights are fitted, too; images that judge choose one.
        seed: of the order of images.
    """

    steps: int
    batch_size: int
    lr: float
    temperature: float
    ways: tuple[int, ...]
    seed: int


class StitchFit:
    """A stitch cut out of its net, whose front stays as it is and whose end learns to answer as the largest anchor.

    Fitted are the stitch layers, all scales, shifts and biases of the legs behind the first (every parameter with a
    single axis), and on demand the whole weights of the first blocks behind a join.

    Args:
        net: the net; it is not changed.
        stitch: id of a stitch with a join.
        blocks: modules behind each join whose whole weights are fitted, too.

    Attributes:
        from_images: whether the front runs at every step, because its features are too many to be kept.
    """

    def __init__(self, net: StitchableNet, stitch: int, blocks: int = 0) -> None:
        self.stitch, self.legs = stitch, net.stitches[stitch].legs
        self.from_images, self.several_labels = False, net.several_labels
        self.module = net.extract(stitch).requires_grad_(False)
        self.dtype = next(self.module.parameters()).dtype
        if self.dtype in (torch.float16, torch.bfloat16):
            self.module.float()
        self.parameters = _fitted(net, stitch, self.module, blocks)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    @torch.no_grad()
    def front(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) to the features at the first join."""
        anchor, leg = self.anchor(0), self.legs[0]
        return anchor.run(images.to(next(self.module.parameters()).dtype), leg.start, leg.stop)

    def behind(self, x: Tensor) -> Tensor:
        """Features at the first join (or images, with `from_images`) to logits (n, classes)."""
        if self.from_images:
            x = self.front(x)
        for number, leg in enumerate(self.legs[1:], start=1):
            x = self.anchor(number).run(self.module.stitch_layers[number - 1](x), leg.start, leg.stop)
        return x

    def anchor(self, number: int) -> Anchor:
        """The anchor of a leg, cut to it."""
        found = self.module.anchors[number]
        assert isinstance(found, Anchor)
        return found

    def step(self, optimizer: torch.optim.Optimizer, x: Tensor, answers: Tensor, temperature: float) -> None:
        """One update towards the answers (n, classes): the divergence of probabilities at a temperature."""
        found, wanted = (z.float() / temperature for z in (self.behind(x), answers))
        loss = divergence(found, wanted, self.several_labels).sum() / len(found)
        optimizer.zero_grad()
        (loss * temperature**2).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        """AdamW without weight decay: everything starts near where it should stay."""
        layers = {id(p) for p in self.module.stitch_layers.parameters()}
        small = [p for p in self.parameters.values() if p.ndim < 2 or id(p) in layers]
        large = [p for p in self.parameters.values() if p.ndim >= 2 and id(p) not in layers]
        groups = [{'params': small, 'lr': lr}, {'params': large, 'lr': lr / 3}]
        return torch.optim.AdamW([group for group in groups if group['params']], weight_decay=0.0)

    @torch.enable_grad()
    def fit(
        self,
        features: Tensor | BlendedImages,
        answers: Tensor,
        rows: Tensor,
        settings: FitSettings,
        progress: Callable[[int], object] = lambda steps: None,
    ) -> None:
        """Runs all steps.

        Args:
            features: at the first join (n, ...), or the images themselves with `from_images`.
            answers: logits of the largest anchor (n, classes).
            rows: indices of the images that fit.
            settings: how.
            progress: called with the number of steps after each.
        """
        optimizer = self.optimizer(settings.lr)
        rates = [group['lr'] for group in optimizer.param_groups]
        order: list[int] = []
        epoch = 0
        for step in range(settings.steps):
            if len(order) < min(settings.batch_size, len(rows)):
                draw = generator(settings.seed, 'adapt', self.stitch, epoch)
                order, epoch = order + rows[torch.randperm(len(rows), generator=draw)].tolist(), epoch + 1
            batch, order = order[: settings.batch_size], order[settings.batch_size :]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group['lr'] = rate * _schedule(step, settings.steps)
            self.step(optimizer, features[batch], answers[batch], settings.temperature)
            progress(1)

    def values(self) -> dict[str, Tensor]:
        """What was fitted, by the names that the net has for it, in the net's type."""
        return {name: parameter.detach().to(self.dtype, copy=True) for name, parameter in self.parameters.items()}


def _schedule(step: int, steps: int) -> float:
    rising = max(1, round(_WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))


def fitted_names(net: StitchableNet, stitch: int, blocks: int = 0) -> list[frozenset[str]]:
    """Names (in the net) of the parameters of a stitch that are fitted, by leg; none for the first one.

    One that two legs of a stitch share is left out, because the legs hold copies of it.
    """
    legs, chosen = names_behind(net, stitch), net.stitches[stitch]
    shared = {name for name, count in Counter(chain(*legs)).items() if count > 1}
    found = []
    for leg, names in zip(chosen.legs, legs, strict=True):
        anchor = net.anchor(leg.anchor)
        stop = min((leg.start or 0) + blocks, len(anchor.line()))
        whole = anchor.parameter_names(leg.start, stop) if blocks else frozenset()
        prefix = f'anchors.{net.index_of(leg.anchor)}.model.'
        found.append(
            frozenset(
                name
                for name in names - shared
                if not name.startswith(prefix)  # of a stitch layer
                or name.removeprefix(prefix) in whole
                or net.get_parameter(name).ndim < 2
            )
        )
    return found


def _fitted(net: StitchableNet, stitch: int, module: ExtractedStitch, blocks: int) -> dict[str, nn.Parameter]:
    """The parameters of an extracted stitch that are fitted, by their names in the net."""
    found = {}
    for number, names in enumerate(fitted_names(net, stitch, blocks)):
        for name in names:
            kind, _, rest = name.split('.', 2)
            place = f'stitch_layers.{number - 1}' if kind == 'stitch_layers' else f'anchors.{number}'
            found[name] = module.get_parameter(f'{place}.{rest}')
    return dict(sorted(found.items()))
