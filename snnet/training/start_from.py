"""The net that a run with --from starts from: networks by name, a saved net, or a published checkpoint."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING

from ..anchors.names import is_net_folder, resolve, split_names
from ..errors import NoWeights, SnnetError
from ..net.create import create_stitchable_net
from ..net.open_net import open_net
from ..net.stitchable_net import StitchableNet

if TYPE_CHECKING:
    from .build_net import NetSettings

_OF_THE_SPACE = ('window', 'step', 'nearest', 'direction', 'drop_path', 'img_size')
"""Settings that a net which is there already has decided."""


def start_net(settings: NetSettings, classes: int | None) -> StitchableNet:
    """The net with heads for so many classes; heads that are new are marked as such.

    Args:
        settings: `from_` says where it comes from.
        classes: width of the logits; what the weights hold where None.

    Raises:
        SnnetError: nothing is there, or a setting that a saved net has decided already.
    """
    if not is_whole_net(settings.from_):
        return create_stitchable_net(
            settings.from_, pretrained=settings.pretrained, num_classes=classes, img_size=settings.img_size,
            window=settings.window, step=settings.step, nearest=settings.nearest, direction=settings.direction,
            drop_path_rate=settings.drop_path,
        )  # fmt: skip
    defaults = {field.name: field.default for field in fields(settings)}
    for name in _OF_THE_SPACE:
        if getattr(settings, name) != defaults[name]:
            flag = name.replace('_', '-')
            raise SnnetError(f'{settings.from_} is a whole net, which has decided that already: leave --{flag} out')
    try:
        return open_net(settings.from_, classes)
    except NoWeights as error:
        if os.path.isfile(settings.from_):
            raise NoWeights(
                f'name the network that the weights in {settings.from_} belong to, as NAME={settings.from_}, unless '
                f'it is a whole net ({error})'
            ) from None
        raise


def is_whole_net(text: str) -> bool:
    """Whether --from names a net with stitches: a folder, a file, or a repository on the Hub, and nothing else."""
    names = split_names(text)
    if len(names) != 1:
        return False
    if is_net_folder(names[0]) or os.path.isfile(names[0]):
        return True
    if '=' in names[0] or names[0].count('/') != 1 or ':' in names[0]:
        return False
    try:
        resolve(names[0])
    except SnnetError:
        return True  # OWNER/NAME on the Hub; what is neither is named in the error of fetching it
    return False
