"""`--tune each`: first each network alone, then the net of the tuned ones, in one command."""

from __future__ import annotations

import re
from pathlib import Path

from ..anchors.names import is_net_folder, split_names, without_file
from ..config.sections import with_changes
from ..errors import SnnetError
from ..saving.file_names import WEIGHTS
from .build_net import EACH, build_net
from .check_settings import with_defaults
from .growth import grows
from .teacher import NONE
from .train_settings import TrainSettings

NETWORKS = 'networks'
"""Where the output folder holds the runs of single networks."""


def runs_of(settings: TrainSettings) -> list[TrainSettings]:
    """The runs that the settings ask for, one after another; only they themselves unless --tune is 'each'.

    Each network is tuned with all of its weights, without a teacher, in a folder within the output folder. The last run
    starts from the tuned networks, leaves them as they are below their heads, and trains the stitches between them.

    Raises:
        SnnetError: fewer than two networks, or settings that do not go together; nothing is written then.
    """
    if settings.net.tune != EACH:
        return [with_defaults(settings)]
    names = split_names(settings.net.from_)
    if len(names) < 2:
        raise SnnetError(
            '--tune each trains two or more networks alone, then stitches them: name them with --from, or take '
            '--tune all for a single network or a whole net'
        )
    if grows(settings.growth):
        raise SnnetError(
            'branches grow while stitches are trained, not with --tune each: name the tuned networks later'
        )
    build_net(settings.net, settings.data)  # networks that cannot be stitched are refused before they are tuned
    folders = [
        Path(settings.output) / NETWORKS / f'{place}-{re.sub(r"[^A-Za-z0-9.]+", "_", without_file(name))}'
        for place, name in enumerate(names)
    ]
    alone = [
        with_changes(
            settings, from_=name, tune='all', teacher=NONE, recalibrate=0, adapt_minutes=0.0, adapt_steps=None,
            output=str(folder),
        )
        for name, folder in zip(names, folders, strict=True)
    ]  # fmt: skip
    by_name = not any(':' in without_file(name) or is_net_folder(name) for name in names)
    if by_name:  # so that stitches are named after networks, not after folders
        tuned = [
            f'{without_file(name)}={folder / "net" / WEIGHTS}' for name, folder in zip(names, folders, strict=True)
        ]
        together = with_changes(settings, from_=','.join(tuned), tune='stitches')
    else:
        tuned = [str(folder / 'net') for folder in folders]
        together = with_changes(settings, from_=','.join(tuned), tune='stitches', img_size=None, drop_path=None)
    return [with_defaults(run) for run in (*alone, together)]
