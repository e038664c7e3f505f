"""Loading of training images: ours against a plain loader over timm's data set, the same images in one run.

    python benchmarks/loading.py --images 192 --pairs 3

The images are generated JPEG files of ImageNet's usual size (500 x 375), augmented as in DeiT's recipe. The plain way
is timm's data set, transform and sampler of repeated augmentation in torch's loader, with the processes kept between
epochs as ours are. Both run in pairs, in alternating order; the median of the ratios is printed for every number of
processes, with and without repeated augmentation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms

import snnet
from snnet.data.train_images import TrainDataSettings, TrainImages
from snnet.data.transforms import AugmentationSettings, random_erasing, train_transform
from snnet.utils.distributed import Ranks

HALF = torch.tensor([0.5] * 3)


def write_photographs(folder: Path, count: int) -> None:
    """Images with coarse and fine structure, so that they take as long to decode as photographs (about 90 kB each)."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(coarse, dtype=np.float32) + random.normal(0, 12, (375, 500, 1))
        path = folder / 'train' / f'class{number % 4}' / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def plain_loader(
    data: TrainDataSettings, augmentation: AugmentationSettings, net: snnet.StitchableNet
) -> DataLoader[Any]:
    """A loader written without this package."""
    dataset = create_dataset('', root=data.data_dir, split='train')
    steps = [
        *train_transform(augmentation, net).transforms[:-1],
        transforms.ToTensor(),
        transforms.Normalize(HALF, HALF),
    ]
    dataset.transform = transforms.Compose([*steps, random_erasing(augmentation)])
    sampler: Any = RandomSampler(dataset)
    if augmentation.aug_repeats:
        sampler = RepeatAugSampler(dataset, 1, 0, num_repeats=augmentation.aug_repeats)
    return DataLoader(
        dataset,
        data.batch_size,
        sampler=sampler,
        num_workers=data.workers,
        drop_last=True,
        persistent_workers=data.workers > 0,
    )


def images_per_second(epoch: Callable[[], Iterable[Any]]) -> float:
    """Images per second over one epoch."""
    begin, count = time.perf_counter(), 0
    for images, _ in epoch():
        count += len(images)
    return count / (time.perf_counter() - begin)


def main() -> None:
    """Prints images per second of both ways and their ratio."""
    parser = argparse.ArgumentParser(description='Ours against a plain loader over timm images.')
    parser.add_argument('--images', type=int, default=192)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--pairs', type=int, default=3, help='repetitions of both ways')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    args = parser.parse_args()
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=224)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), args.images)
        for workers in args.workers:
            for repeats in (0, 3):
                data = TrainDataSettings(data_dir=folder, batch_size=args.batch_size, workers=workers)
                augmentation = AugmentationSettings(aa='rand-m9-mstd0.5-inc1', reprob=0.25, aug_repeats=repeats)
                ours = TrainImages(data, augmentation, 0, Path(folder), net, Ranks(0, 1, torch.device('cpu')))
                plain = plain_loader(data, augmentation, net)
                rates = []
                for pair in range(args.pairs + 1):
                    rate = images_per_second(lambda pair=pair, ours=ours: ours.epoch(pair))  # type: ignore[misc]
                    rates.append((rate, images_per_second(lambda plain=plain: plain)))  # type: ignore[misc]
                fast, slow = (
                    statistics.median(column) for column in zip(*rates[1:], strict=True)
                )  # 0 starts processes
                ratio = statistics.median(a / b for a, b in rates[1:])
                print(
                    f'{workers} processes, {repeats or 1} versions of an image: {fast:.0f} images/s against '
                    f'{slow:.0f}: {ratio:.2f} times as fast',
                    flush=True,
                )


if __name__ == '__main__':
    main()
