"""Saved nets through `timm.create_model`, once they are registered with timm."""

from __future__ import annotations

from typing import Any

from timm.models import is_model, register_model

from ..errors import SnnetError
from .extract import ExtractedStitch
from .stitchable_net import StitchableNet

__all__ = ['register_with_timm']


def register_with_timm() -> None:
    """Lets `timm.create_model` make saved nets and their stitches in this process.

    The name is 'snnet', with `folder=` (or an id on the Hub) and, for a single network, `stitch=`; a folder or an id
    may also be given in timm's way, as `local-dir:FOLDER` or `hf-hub:OWNER/NAME`:

        timm.create_model('snnet', folder='net', stitch=7)
        timm.create_model('local-dir:net', stitch=7)
    """
    if not is_model('snnet'):
        register_model(snnet)


def snnet(pretrained: bool = False, **options: Any) -> StitchableNet | ExtractedStitch:
    """What `timm.create_model('snnet', ...)` calls.

    Args:
        pretrained: ignored, because a saved net is always loaded with its weights.
        options: `folder` of a saved net or its id on the Hub; `stitch` to cut one out; `num_classes` for new
            classifiers; and what timm adds, of which only the place of the net is used.

    Raises:
        SnnetError: no folder, an option that saved nets do not have, or an error of `StitchableNet.from_pretrained`.
    """
    config = options.pop('pretrained_cfg', None) or {}
    options.pop('pretrained_cfg_overlay', None)
    options.pop('pretrained_model_args', None)
    cache_dir, folder = options.pop('cache_dir', None), options.pop('folder', None)
    stitch, num_classes = options.pop('stitch', None), options.pop('num_classes', None)
    if options:
        raise SnnetError(f"a saved net has no option '{next(iter(options))}': folder, stitch and num_classes are known")
    if folder is None and isinstance(config, dict):
        folder = config.get('file') or config.get('hf_hub_id')
    if folder is None:
        raise SnnetError("which net? timm.create_model('snnet', folder=FOLDER) needs the folder of a saved one")
    net = StitchableNet.from_pretrained(folder, num_classes=num_classes, cache_dir=cache_dir)
    return net if stitch is None else net.extract(stitch, intermediates=True)
