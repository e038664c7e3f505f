"""Builds the networks of assemblies with the options of a run, and measures them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..anchors.anchor import Anchor
from ..data.unaugmented_images import drawn_images
from ..errors import BudgetInfeasible
from ..net.create import create_stitchable_net
from ..net.stitchable_net import StitchableNet
from ..stitching.stitch import Leg
from .assembly import Assembly
from .build_reassembled import reassemble
from .candidate import Candidate
from .naswot import CodeScore, naswot_score
from .reassemble_settings import ReassembleSettings
from .reassembled import Reassembled
from .reassembled_anchor import ReassembledAnchor

_NASWOT_BATCHES, _NASWOT_IMAGES = 2, 32
"""Batches, and images per batch, for NASWOT."""


class NetworkBuilder:
    """Makes networks from legs of a zoo.

    Args:
        settings: of the run.
        zoo: networks by the names that legs use.
        images: a data set, not decoded.
        device: for images.
    """

    def __init__(
        self, settings: ReassembleSettings, zoo: Mapping[str, Anchor], images: Dataset[Any], device: torch.device
    ) -> None:
        self.settings, self.zoo, self.images, self.device = settings, zoo, images, device

    def build(self, legs: str | Sequence[Leg]) -> tuple[Reassembled, StitchableNet]:
        """A network, and the stitchable net whose only anchor it is.

        Raises:
            CannotStitch: the legs do not run one behind the other.
        """
        wanted = self.settings.assembly
        network = reassemble(
            legs, self.zoo, stem=wanted.stem, head=wanted.head, joins=wanted.joins, resample=wanted.resample,
            num_classes=wanted.num_classes, seed=self.settings.seed,
        )  # fmt: skip
        return network, create_stitchable_net([ReassembledAnchor(network)], pretrained=True)

    def candidate(self, assembly: Assembly) -> Candidate:
        """An assembly as a network, with its costs and scores.

        Raises:
            CannotStitch: its legs do not run one behind the other.
            BudgetInfeasible: it misses the budget once built.
        """
        network, net = self.build(assembly.legs)
        flops, params = self.costs(net)
        return Candidate(assembly, str(network), flops, params, self._codes(network, net))

    def costs(self, net: StitchableNet) -> tuple[int, int]:
        """FLOPs per image and parameters of a network.

        Raises:
            BudgetInfeasible: it misses the budget.
        """
        network, record, wanted = net.anchor(0).model, net.records[0], self.settings.assembly
        assert record.flops is not None
        assert record.params is not None
        costs = {'flops': float(record.flops), 'params': float(record.params)}
        for name, limit in (('flops', wanted.flops), ('params', wanted.params)):
            if limit is not None and costs[name] > limit:
                raise BudgetInfeasible(
                    f'{network} has {name} = {costs[name]:.6g} once built, {costs[name] / limit:.3g} times the budget',
                    costs,
                )
        return record.flops, record.params

    def images_for(self, net: StitchableNet, count: int) -> list[Tensor]:
        """Batches (n, C, H, W) of images drawn by the seed, prepared for a net."""
        drawn = drawn_images(self.settings.data, self.images, net, count, self.settings.seed, self.device)
        return [images for images, _ in drawn]

    def _codes(self, network: Reassembled, net: StitchableNet) -> CodeScore | None:
        """The NASWOT score, if the list is ranked by it."""
        if self.settings.assembly.rank == 'similarity':
            return None
        wanted = _NASWOT_BATCHES * _NASWOT_IMAGES
        images = torch.cat(self.images_for(net, wanted))
        size = _NASWOT_IMAGES if len(images) == wanted else len(images)
        return naswot_score(network, [images[at : at + size] for at in range(0, len(images), size)])
