"""The training images of a run: augmented batches, epoch by epoch, and the images that cannot be read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.sections import option
from ..errors import SnnetError
from ..net.preprocessing import preprocessing
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from .batches import AugmentedPictures
from .datasets import DataSettings, open_dataset
from .decode import Pictures
from .folder_checks import is_undivided
from .loader import Loader
from .order import Draw, Draws
from .quarantine import Quarantine
from .transforms import AugmentationSettings, make_normalizer, random_erasing, train_transform

_log = logging.getLogger(__name__)
QUARANTINE = 'quarantine.jsonl'
"""Names the unreadable training images, in the output folder."""


@dataclass
class TrainDataSettings(DataSettings):
    """Where training images come from and how they are read."""

    train_split: str = option('train', 'name of the training split')
    max_bad_images: float = option(0.001, 'share of the training images that may be unreadable', free=True)


class TrainImages:
    """Augmented training batches, epoch by epoch, the same whatever the number of loader processes.

    Attributes:
        dataset: the images, not decoded.
        undivided: whether they are a whole folder without splits, so that none are left for evaluation.
        quarantine: the images that cannot be read. Others take their place; every so many steps all ranks let it
            `settle`, which ends the run where there are too many.

    Args:
        data: where the images are.
        augmentation: how they are varied.
        seed: of order and augmentation.
        output: folder for the list of images that cannot be read.
        net: gives image size and normalization.
        ranks: each rank reads its own share.

    Raises:
        SnnetError: there are fewer images than one batch.
    """

    def __init__(
        self,
        data: TrainDataSettings,
        augmentation: AugmentationSettings,
        seed: int,
        output: Path,
        net: StitchableNet,
        ranks: Ranks,
    ) -> None:
        self.data, self.augmentation, self.seed = data, augmentation, seed
        self.dataset = open_dataset(data, data.train_split, net)
        self.undivided = is_undivided(self.dataset, data.data_dir)
        if self.undivided and ranks.first:
            _log.warning(
                "'%s' has no split '%s': all of its images are training images, so evaluate with others "
                '(snnet split divides a folder)',
                data.data_dir, data.train_split,
            )  # fmt: skip
        pictures = Pictures(self.dataset)
        self._draws = Draws(len(pictures), data.batch_size, augmentation.aug_repeats, seed, ranks)
        self.quarantine = Quarantine(pictures, data.max_bad_images, ranks, output / QUARANTINE)
        source = AugmentedPictures(pictures, train_transform(augmentation, net), random_erasing(augmentation))
        self._loader = Loader(source, make_normalizer(net, ranks.device), data.workers, self.quarantine.add)
        self._preprocessing = preprocessing(net)
        self._world = ranks.world
        if len(self) == 0:
            raise SnnetError(
                f'{len(pictures)} images are fewer than one batch of {data.batch_size} on each of '
                f'{ranks.world} processes: lower --batch-size'
            )

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return len(self._draws)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images, classes) of an epoch, on the device of the rank.

        Args:
            epoch: from 0.
            first: leave out so many batches; their images are not read, and the others stay as they are.
        """
        return self._loader.batches(partial(self._draws.batches, epoch), first)

    def unseen(self, epoch: int, batches: int) -> list[Draw]:
        """Draws of the images that an epoch shows this rank only after its first batches, each image once.

        Args:
            epoch: from 0.
            batches: how many batches are left out, with all images that they show.
        """
        order = [draw for batch in self._draws.batches(epoch) for draw in batch]
        shown = {draw.image for draw in order[: batches * self.data.batch_size]}
        return list({draw.image: draw for draw in order if draw.image not in shown}.values())

    def identity(self) -> dict[str, Any]:
        """Everything that determines the pixels of every batch, in values that JSON can hold.

        What the files contain is left out.
        """
        return {
            'world': self._world,
            'files': digest_of_names(self.dataset),
            **{name: self._preprocessing[name] for name in ('input_size', 'mean', 'std')},
            'data_seed': self.seed,
            **{name: getattr(self.data, name) for name in ('dataset', 'train_split', 'batch_size')},
            **asdict(self.augmentation),
        }


def digest_of_names(dataset: Any) -> str:
    """The number of images and, where timm reads them from files, a digest of the names below the root."""
    reader: Any = getattr(dataset, 'reader', None)
    samples = getattr(reader, 'samples', None)
    if not samples or not isinstance(samples[0][0], str):
        return f'{len(dataset)} images'
    root, digest = str(reader.root), hashlib.sha256()
    for path, *_ in samples:
        digest.update(path.removeprefix(root).lstrip('/').encode() + b'\n')
    return f'{len(dataset)} images, names {digest.hexdigest()[:32]}'
