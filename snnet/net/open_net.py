"""A net from whatever holds one: a saved folder, the Hub, or a published checkpoint."""

from __future__ import annotations

from pathlib import Path

from ..errors import NoWeights
from ..saving.hub import locate
from .official import load_official
from .stitchable_net import StitchableNet


def open_net(where: str | Path, num_classes: int | None = None) -> StitchableNet:
    """The net that is saved in a folder, on the Hub, or in a file of the published implementation, in eval mode.

    Args:
        where: a folder, OWNER/NAME or OWNER/NAME@REVISION on the Hub, or a file (see `load_official`).
        num_classes: width of the logits; another one than was saved gives every anchor a new classifier.

    Raises:
        SnnetError: nothing there holds a net.
        NoWeights: weights that are missing or damaged, or a file that fits several spaces.
    """
    if not Path(where).is_file():
        return StitchableNet.from_pretrained(locate(where), num_classes=num_classes)
    try:
        return load_official(where, num_classes=num_classes)
    except NoWeights as error:
        if 'window' not in str(error):
            raise
        raise NoWeights(
            f'{error}: snnet.load_official takes them, and save_pretrained makes a folder of the net'
        ) from None
