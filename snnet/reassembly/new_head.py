"""The new head of a reassembled network, as in the paper."""

from __future__ import annotations

from torch import Tensor, nn

from ..anchors.boundary import Boundary

_GRID_AXES = {'NCHW': (2, 3), 'NHWC': (1, 2), 'NLC': (1,)}


class NewHead(nn.Module):
    """The paper's head: global average pooling over the grid, then a linear classifier.

    Args:
        front: what the last leg gives; prefix tokens are not pooled.
        num_classes: width of the logits.
    """

    def __init__(self, front: Boundary, num_classes: int) -> None:
        super().__init__()
        self.front = front
        self.fc = nn.Linear(front.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features at the last position to logits (N, classes)."""
        cells = x[:, self.front.prefix :] if self.front.prefix else x
        logits: Tensor = self.fc(cells.mean(_GRID_AXES[self.front.layout]))
        return logits


def new_head_costs(num_classes: int, front: Boundary) -> tuple[int, int]:
    """FLOPs per image and parameters of the new head."""
    return front.channels * num_classes, (front.channels + 1) * num_classes
