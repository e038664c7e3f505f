"""The order in which images are read in an epoch; each draw has the key of its random augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler

from ..utils.distributed import Ranks
from ..utils.seeds import key


class Draw(NamedTuple):
    """One image of an epoch.

    Attributes:
        image: its number in the data set.
        key: of its augmentation and, where it cannot be read, of the image in its place.
    """

    image: int
    key: int


class Draws:
    """This rank's draws of every epoch, in random order, dealt to whole batches.

    Args:
        images: how many there are.
        batch_size: images per batch.
        repeats: versions of an image in one epoch (repeated augmentation); none where below 2.
        seed: of order and augmentation.
        ranks: each rank draws its own share.
    """

    def __init__(self, images: int, batch_size: int, repeats: int, seed: int, ranks: Ranks) -> None:
        self.ranks, self.batch_size, self.seed = ranks, batch_size, seed
        place: dict[str, Any] = {'num_replicas': ranks.world, 'rank': ranks.rank}
        self._order: Any
        if repeats > 1:
            self._order = RepeatAugSampler(range(images), num_repeats=repeats, **place)
        else:
            self._order = DistributedSampler(range(images), drop_last=True, **place)  # type: ignore[arg-type]  # needs only a length

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._order) // self.batch_size

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[Draw]]:
        """The batches of an epoch from number `first` on."""
        draws = self._draws(epoch, first * self.batch_size)
        for _ in range(first, len(self)):
            yield list(islice(draws, self.batch_size))

    def _draws(self, epoch: int, first: int) -> Iterator[Draw]:
        self._order.set_epoch(key(self.seed, 'order', epoch) % 2**31)
        for position, image in islice(enumerate(self._order), first, None):
            place = position * self.ranks.world + self.ranks.rank
            yield Draw(image, key(self.seed, 'augment', epoch, place))
