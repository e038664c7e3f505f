"""Low-rank updates of an anchor's linear layers (LoRA, Hu et al., 2021), merged into their weights at the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..anchors.anchor import Anchor
from ..anchors.new_head import classifier_modules
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..utils.seeds import generator


class LowRankUpdate(nn.Module):
    """A weight W (out, in) as W + B A / r, where A (r, in) is `down` and B (out, r) is `up`.

    Args:
        weight: W, which stays as it is.
        rank: r; reduced to the smaller side of the weight where it is larger.
        generator: draws A; B is zero, so that the update has no effect until it is trained.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rank, bound = min(rank, *weight.shape), 1 / math.sqrt(weight.shape[1])
        down = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight))  # A (r, in)
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))  # B (out, r)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its update (out, in)."""
        return weight + self.up @ self.down / len(self.down)


def start_updates(anchor: Anchor, rank: int, seed: int, place: int) -> None:
    """Gives every linear layer of an anchor but its classifier a low-rank update; its weight is frozen.

    Args:
        anchor: to train.
        rank: of the updates.
        seed: of their random half.
        place: of the anchor in its net, so that anchors draw different ones.

    Raises:
        SnnetError: it has no linear layers.
    """
    head = {id(part) for module in classifier_modules(anchor.model) for part in module.modules()}
    layers = [m for m in anchor.model.modules() if isinstance(m, nn.Linear) and id(m) not in head]
    if not layers:
        raise SnnetError(
            f'{anchor.name} has no linear layers below its head, so --tune lora has nothing to update: '
            f'use --tune stitches or --tune all'
        )
    for number, layer in enumerate(layers):
        layer.weight.requires_grad_(False)
        update = LowRankUpdate(layer.weight, rank, generator(seed, 'lora', place, number))
        parametrize.register_parametrization(layer, 'weight', update)
    anchor.forget_survey()


def merge_updates(net: StitchableNet) -> None:
    """Folds all updates of a net's anchors into their weights; outputs stay as they are."""
    for anchor in map(net.anchor, range(len(net.anchors))):
        layers = [m for m in anchor.modules() if isinstance(m, nn.Linear) and parametrize.is_parametrized(m, 'weight')]
        for layer in layers:
            parametrize.remove_parametrizations(layer, 'weight', leave_parametrized=True)
        if layers:
            anchor.forget_survey()
