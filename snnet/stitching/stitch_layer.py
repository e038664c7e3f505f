"""The stitch layer: a plain 1x1 map between two boundaries (SN-Net, section 3.2), layouts converted by einops."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.boundary import Boundary
from ..errors import CannotStitch, SnnetError
from .layout import to_layout


class StitchLayer(nn.Linear):
    """Maps every feature vector of the front to the end's width: 1x1 with bias, without norm or activation.

    Prefix tokens are mapped like any other token. Weight (end channels, front channels) and bias (end channels) are
    those of a linear layer; NCHW features go through a 1x1 convolution.

    After `start_update` the weight is frozen and a low-rank update is trained in its place (SN-Netv2): the layer maps
    by W + B A / r, where A is `down` (r, front channels) and B is `up` (end channels, r). `merge` ends that.

    Args:
        front: boundary at which the front leg stops.
        end: boundary at which the end leg starts.

    Raises:
        CannotStitch: grid or prefix tokens of the two differ.
    """

    def __init__(self, front: Boundary, end: Boundary) -> None:
        if not front.joins(end):
            raise CannotStitch(f'no stitch layer joins {front} to {end}: grid and prefix tokens must agree')
        super().__init__(front.channels, end.channels)
        self.front, self.end = front, end
        self.down: nn.Parameter | None
        self.up: nn.Parameter | None
        self.register_parameter('down', None)
        self.register_parameter('up', None)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Kaiming initialization as in torch's layers: uniform within 1 / sqrt(front channels), drawn on the CPU."""
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def start_update(self, rank: int, generator: torch.Generator | None = None) -> None:
        """Freezes the weight and adds a low-rank update, without effect until it is trained; the bias still trains.

        Args:
            rank: of the update; reduced to the width of the narrower side where it is larger.
            generator: draws A as in Kaiming's initialization, on the CPU; B is zero.

        Raises:
            SnnetError: a rank below one, or the layer has an update already.
        """
        if rank < 1:
            raise SnnetError(f"the rank of a stitch layer's update is at least 1, not {rank}")
        if self.down is not None:
            raise SnnetError('the stitch layer has an update already: merge it before starting another one')
        rank, bound = min(rank, *self.weight.shape), 1 / math.sqrt(self.in_features)
        down = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(self.weight))  # A (r, front channels)
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, rank))  # B (end channels, r)
        self.weight.requires_grad_(False)

    def merge(self) -> None:
        """Folds the update into the weight, which is trained again; the output stays the same bit for bit."""
        if self.down is None:
            return
        with torch.no_grad():
            self.weight.copy_(self.whole_weight())
        self.weight.requires_grad_(True)
        self.down = self.up = None

    def merged(self) -> StitchLayer:
        """A copy without update that gives the same output bit for bit."""
        layer = copy.deepcopy(self)
        layer.merge()
        return layer

    def whole_weight(self) -> Tensor:
        """The weight with its update, W + B A / r: (end channels, front channels)."""
        if self.down is None or self.up is None:
            return self.weight
        return self.weight + self.up @ self.down / len(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """Features at the front's boundary to features at the end's boundary."""
        weight = self.whole_weight()
        if self.front.layout == 'NCHW':
            x = F.conv2d(x, weight[:, :, None, None], self.bias)
        else:
            x = F.linear(x, weight, self.bias)
        return to_layout(x, self.front, self.end.layout)

    @property
    def flops(self) -> int:
        """Multiply-adds per image."""
        return self.front.tokens * self.in_features * self.out_features

    def extra_repr(self) -> str:
        """The two boundaries, in print."""
        return f'{self.front} > {self.end}'


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network, with the updates of its stitch layers folded into their weights."""
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, StitchLayer) and module.down is not None:
            state[f'{name}.weight'] = module.whole_weight().detach()
            del state[f'{name}.down'], state[f'{name}.up']
    return state
