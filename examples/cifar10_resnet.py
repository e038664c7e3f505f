"""A family from outside: the public CIFAR-10 ResNets of depth 20, 32, 44 and 56, which timm does not know.

A plugin that adds the networks to timm and their adapter to snnet (nothing in snnet is edited), and a script that turns
the public files into what train.py reads:

    python examples/cifar10_resnet.py SOURCE output/cifar10

SOURCE holds `resnet{20,32,44,56}-*.th` from github.com/akamaster/pytorch_resnet_cifar10 and, from the CIFAR-10 demo of
ConvNetJS (cs.stanford.edu/people/karpathy/convnetjs), `cifar10_labels.js` and the sprites `cifar10_batch_{0..}.png` of
1,000 images each, of which number 50 are test images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from snnet import Stage, register_adapter
from snnet.anchors.adapters.resnet import ResNetAnchor

BLOCKS = {f'cifar_resnet{6 * n + 2}': n for n in (1, 3, 5, 7, 9)}
"""Blocks in each of the three stages."""
PUBLIC = [name for name in BLOCKS if name != 'cifar_resnet8']
"""Those whose weights are published; benchmarks/distill_resnet8.py makes the other's."""
TEST_SPRITE = 50

default_cfgs = generate_default_cfgs(
    {
        name: {
            'num_classes': 10,
            'input_size': (3, 32, 32),
            'crop_pct': 1.0,
            'mean': (0.485, 0.456, 0.406),
            'std': (0.229, 0.224, 0.225),
            'first_conv': 'conv1',
            'classifier': 'fc',
        }
        for name in BLOCKS
    }
)


class PadShortcut(nn.Module):
    """The shortcut without parameters (He et al. 2015, option A): every other pixel, new channels of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 2 C, H / 2, W / 2)."""
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class CifarResNet(ResNet):
    """timm's ResNet with a 3x3 stem, no max pooling, three stages of width w, 2 w, 4 w, and padded shortcuts."""

    def __init__(self, blocks: int, width: int = 16, **kwargs: Any) -> None:
        super().__init__(BasicBlock, (blocks,) * 3, channels=(width, 2 * width, 4 * width), **kwargs)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        self.layer1[0] = BasicBlock(width, width)
        self.layer2[0].downsample = PadShortcut()
        self.layer3[0].downsample = PadShortcut()
        self.layer4 = nn.Identity()


class CifarResNetAnchor(ResNetAnchor):
    """Three stages, all of them stitched."""

    def stages(self) -> list[Stage]:
        """The three layers."""
        model = self.model
        return [Stage(list(layer)) for layer in (model.layer1, model.layer2, model.layer3)]

    def stitch_stages(self) -> range:
        """All three stages."""
        return range(3)


register_adapter(CifarResNet, CifarResNetAnchor)


def _resnet(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(CifarResNet, name, pretrained, blocks=BLOCKS[name], **kwargs)


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """1 block per stage."""
    return _resnet('cifar_resnet8', pretrained, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """3 blocks per stage."""
    return _resnet('cifar_resnet20', pretrained, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """5 blocks per stage."""
    return _resnet('cifar_resnet32', pretrained, **kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """7 blocks per stage."""
    return _resnet('cifar_resnet44', pretrained, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """9 blocks per stage."""
    return _resnet('cifar_resnet56', pretrained, **kwargs)


def convert_weights(source: Path, target: Path) -> None:
    """Writes the published weights under timm's names."""
    for name in PUBLIC:
        files = sorted(source.glob(f'{name.removeprefix("cifar_")}-*.th'))
        if not files:
            sys.exit(f'{source} holds no {name.removeprefix("cifar_")}-*.th')
        state = torch.load(files[0], map_location='cpu', weights_only=True)['state_dict']
        renamed = {key.removeprefix('module.').replace('linear.', 'fc.'): value for key, value in state.items()}
        save_file({key: value.contiguous() for key, value in renamed.items()}, target / f'{name}.safetensors')


def read_sprite(source: Path, number: int) -> tuple[np.ndarray, list[int]]:
    """Images (1000, 32, 32, 3) of bytes of a sprite, and their classes."""
    labels = json.loads('[' + (source / 'cifar10_labels.js').read_text().partition('[')[2].rpartition(']')[0] + ']')
    images = np.asarray(Image.open(source / f'cifar10_batch_{number}.png').convert('RGB')).reshape(1000, 32, 32, 3)
    return images, labels[1000 * number : 1000 * number + 1000]


def write_images(source: Path, target: Path, split: str, sprites: Iterable[int]) -> None:
    """Cuts sprites into PNG files, one folder per class below the folder of the split."""
    for number in sprites:
        images, labels = read_sprite(source, number)
        for i, (image, label) in enumerate(zip(images, labels, strict=True), start=1000 * number):
            path = target / split / str(label) / f'{i:05}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        print(f'{target / split}: sprite {number} written', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Turns the public CIFAR-10 ResNets and sprites into files.')
    parser.add_argument('source', type=Path, help='folder of the public files')
    parser.add_argument('target', type=Path, help='folder to write images and weights to')
    parser.add_argument('--sprites', type=int, default=10, help='training sprites of 1,000 images')
    args = parser.parse_args()
    write_images(args.source, args.target / 'images', 'train', range(args.sprites))
    write_images(args.source, args.target / 'images', 'validation', [TEST_SPRITE])
    convert_weights(args.source, args.target)
