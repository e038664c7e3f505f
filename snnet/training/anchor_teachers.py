"""Keeps anchors near what they were: a frozen copy of each teaches it whenever it is drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.new_head import has_new_head
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet


class AnchorTeachers(nn.Module):
    """Frozen copies of a net's anchors, in eval mode; each is the teacher of the anchor it was copied from.

    Args:
        net: before training and before a checkpoint is loaded into it.
        weight: of the copy's answer in the loss, above 0 and up to 1.

    Raises:
        SnnetError: the weight is out of range, or the classifier of an anchor is new.
    """

    def __init__(self, net: StitchableNet, weight: float) -> None:
        super().__init__()
        if not 0 < weight <= 1:
            raise SnnetError(f'protect_anchors is a weight above 0 and up to 1, not {weight}')
        anchors = [net.anchor(i) for i in range(len(net.anchors))]
        new = [anchor.name for anchor in anchors if has_new_head(anchor.model)]
        if new:
            raise SnnetError(
                f'protect_anchors keeps anchors near their original, but the classifier of {", ".join(new)} is new: '
                f'train without --protect-anchors'
            )
        self.weight = weight
        self.copies = nn.ModuleDict(
            {
                str(record.stitch): net.anchor(net.stitches[record.stitch].legs[0].anchor).duplicate()
                for record in net.records
                if record.anchor
            }
        )
        self.requires_grad_(False).eval()

    def forward(self, stitch: int, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The loss of a stitch, which for an anchor is mixed with the divergence from its original.

        Args:
            stitch: id.
            images: (N, C, H, W).
            logits: of the stitch for the images (N, classes).
            loss: of the logits so far.
        """
        if str(stitch) not in self.copies:
            return loss
        with torch.no_grad():
            answer = F.log_softmax(self.copies[str(stitch)](images), dim=1)
        distance = F.kl_div(F.log_softmax(logits, dim=1), answer, reduction='batchmean', log_target=True)
        return (1 - self.weight) * loss + self.weight * distance

    def train(self, mode: bool = True) -> AnchorTeachers:
        """Stays in eval mode."""
        return super().train(False)
