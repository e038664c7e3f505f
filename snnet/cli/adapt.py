"""`snnet adapt FOLDER`: brings the stitches of a saved net closer to its largest anchor, and changes no anchor."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..config.sections import option
from ..errors import SnnetError


@dataclass
class AdaptSettings:
    """Settings of `snnet adapt`."""

    folder: str = option('', 'folder of a saved net')
    data_dir: str = option('', 'folder with images in each split; their classes are not used')
    dataset: str = option('', "timm's name of a data set (default: the folder)")
    train_split: str = option('train', 'name of the split to adapt with')
    minutes: float = option(10.0, 'about how long the updates may take')
    steps: int | None = option(
        None, 'updates of each stitch, in place of what the minutes allow; 0 only reports', least=0
    )
    samples: int = option(2000, 'most images to use; every fourth one judges', least=8)
    blends: int = option(3, 'blends of two images to fit to, beside each image', least=0)
    stitches: str = option('', "ids to adapt, such as '3-9,24' (default: all that have a join)")
    blocks: int | None = option(
        None,
        'modules behind each join whose whole weights belong to the stitch, too (default: tries none, and as many as '
        '--storage allows; images that judge choose for each stitch)',
        least=0,
    )
    storage: float = option(1.0, 'most own parameters of all stitches, as a multiple of those of the net')
    batch_size: int = option(64, 'images per step', least=1)
    lr: float = option(2e-3, 'highest learning rate')
    seed: int = option(0, 'seed of the choice and of the order of images')
    workers: int = option(4, 'processes that load images', least=0)
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: AdaptSettings) -> None:
    """Adapts the stitches of a net, saves the result in its folder, and prints which are worth having.

    An interrupted call continues with the stitches that are left.

    Raises:
        SnnetError: there is no such folder or no net in it, there are no images, or a setting is out of range.
        OSError: a file cannot be written.
    """
    from ..calibration.adapt import adapt  # here, so that --help does not load torch
    from ..config.sections import check_ranges
    from ..data.datasets import DataSettings, open_dataset
    from ..data.unaugmented_images import drawn_images
    from ..net.save_and_load import write_own_parameters, write_records
    from ..net.stitchable_net import StitchableNet
    from ..stitching.stitch import parse_ids
    from ..utils.plugins import import_plugins

    check_ranges(settings)
    import_plugins(settings.plugin)
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise SnnetError(f"adapted stitches are kept in the folder of the net, but there is no folder '{folder}'")
    net = StitchableNet.from_pretrained(folder)
    data = DataSettings(settings.data_dir, settings.dataset, batch_size=settings.batch_size, workers=settings.workers)
    images = open_dataset(data, settings.train_split, net, classes_matter=False)
    kept = folder / 'adapting'
    done = adapt(
        net,
        drawn_images(data, images, net, settings.samples, settings.seed),
        settings.minutes,
        steps=settings.steps,
        samples=settings.samples,
        blends=settings.blends,
        stitches=parse_ids(settings.stitches, len(net.stitches)) if settings.stitches else None,
        blocks=settings.blocks,
        storage=settings.storage,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
        folder=kept,
    )
    if done.steps and net.own_parameters is not None:
        write_records(folder, net.records)  # first: a stop between the two leaves no accuracy of other parameters
        write_own_parameters(folder, net.own_parameters)
    shutil.rmtree(kept, ignore_errors=True)
    print(done)
