"""What happens to a decoded image: augmentation for training, resizing and cropping for everything else."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing

from ..config.sections import option
from ..errors import SnnetError, reason_of
from ..net.preprocessing import preprocessing
from ..net.stitchable_net import StitchableNet
from ..saving.config_json import INTERPOLATIONS
from .batches import Normalizer


@dataclass
class AugmentationSettings:
    """How training images are varied."""

    scale: tuple[float, float] = option((0.08, 1.0), 'area of random crops')
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), 'aspect ratio of random crops')
    hflip: float = option(0.5, 'probability of a horizontal flip', least=0, most=1)
    color_jitter: float = option(0.4, 'strength of color jitter (unused with --aa)', least=0)
    aa: str = option('', 'AutoAugment policy, such as rand-m9-mstd0.5-inc1')
    train_interpolation: str = option('bicubic', 'interpolation of random crops', choices=(*INTERPOLATIONS, 'random'))
    reprob: float = option(0.0, 'probability of random erasing', least=0, most=1)
    remode: str = option('pixel', 'filling of random erasing', choices=('const', 'rand', 'pixel'))
    aug_repeats: int = option(0, 'versions of an image in one epoch (repeated augmentation)', least=0, most=1000)


@dataclass
class PreprocessingSettings:
    """How images are prepared for evaluation; the folder of the net keeps it."""

    crop_pct: float | None = option(
        None, "share of the resized image's side that the center crop keeps (default: as the net was evaluated before)"
    )
    interpolation: str | None = option(
        None, 'interpolation of resizing (default: as the net was evaluated before)', choices=INTERPOLATIONS
    )

    def given(self) -> dict[str, Any]:
        """What is asked for, in timm's words.

        Raises:
            SnnetError: a crop that is empty or larger than the image.
        """
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise SnnetError(f'crop_pct is a share above 0 and up to 1, not {self.crop_pct}')
        return {name: value for name, value in vars(self).items() if value is not None}


def train_transform(augmentation: AugmentationSettings, net: StitchableNet) -> Any:
    """timm's training transform for the net's images, from a PIL image to a uint8 tensor; what follows is float32.

    Raises:
        SnnetError: a range of crops that is not one, or timm knows no such policy of AutoAugment, or only a part of it.
    """
    _check_policy(augmentation.aa)
    config = preprocessing(net)
    for name, (low, high) in (('scale', augmentation.scale), ('ratio', augmentation.ratio)):
        if not 0 < low <= high < math.inf:
            raise SnnetError(f'{name} is a range of random crops, two numbers above 0 that rise, not {low} and {high}')
    try:
        transform = create_transform(
            input_size=config['input_size'],
            is_training=True,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.aa or None,
            interpolation=augmentation.train_interpolation,
            mean=config['mean'],
            std=config['std'],
            normalize=False,
        )
    except Exception as error:  # timm asserts what it expects of the text
        raise SnnetError(
            f"timm makes no augmentation of aa '{augmentation.aa}' and the other settings: {reason_of(error)}"
        ) from error
    _keep_one_bit(transform)
    return transform


def _check_policy(aa: str) -> None:
    """Refuses parts of a policy that timm would leave out or cut off in silence."""
    kind, *parts = aa.split('-')
    if kind not in ('rand', 'augmix'):
        return
    numbers = dict(re.findall(r'-(mmax|m|p)(\d[^-]*)', aa))
    for part in parts:
        if not part.startswith('t') and not re.search(r'\d', part):
            raise SnnetError(f"aa '{aa}': '{part}' has no number, as in rand-m9-mstd0.5-inc1")
    for name, most in (('m', numbers.get('mmax', '10')), ('p', '1')):
        try:
            fits = float(numbers.get(name, 0)) <= float(most)
        except ValueError:
            continue  # timm says what is wrong
        if not fits:
            raise SnnetError(f"aa '{aa}': {name} is at most {most}, not {numbers[name]}")


def random_erasing(augmentation: AugmentationSettings) -> RandomErasing | None:
    """timm's random erasing, which comes after normalization."""
    return (
        RandomErasing(augmentation.reprob, mode=augmentation.remode, device='cpu') if augmentation.reprob > 0 else None
    )


def clean_transform(net: StitchableNet) -> Any:
    """Resize, center crop and normalization as the first anchor was evaluated."""
    config = preprocessing(net)
    return create_transform(is_training=False, **config)


def clean_steps(net: StitchableNet) -> Any:
    """The steps of `clean_transform` without the normalization: a PIL image to a uint8 tensor."""
    return create_transform(is_training=False, normalize=False, **preprocessing(net))


def make_normalizer(net: StitchableNet, device: torch.device) -> Normalizer:
    """What normalizes batches on a device as the first anchor was trained."""
    config = preprocessing(net)
    return Normalizer(config['mean'], config['std'], device)


def _keep_one_bit(transform: Any) -> None:
    """Lets posterizing keep at least one bit per channel; recent Pillow refuses the 0 bits that timm can ask for."""
    for step in getattr(transform, 'transforms', [transform]):
        policies = getattr(step, 'policy', [getattr(step, 'ops', [])])  # AutoAugment has several, RandAugment one
        for op in (op for policy in policies for op in policy):
            if isinstance(op, AugmentOp) and op.name.startswith('Posterize'):
                op.level_fn = _AtLeastOne(op.level_fn)


class _AtLeastOne:
    """A level function whose first argument is at least 1 (a class, so that loader processes can receive it)."""

    def __init__(self, level: Any) -> None:
        self.level = level

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        bits, *rest = self.level(*args)
        return (max(1, bits), *rest)
