"""A family of plain convolutions without residuals: the public MobileNetV1 0.25, 0.5 and 0.75.

A plugin that adds the three networks to timm and their adapter to snnet, and a script that sorts 1,000 photographs into
folders, every other one for training:

    python examples/mobilenet_v1.py SOURCE output/mobilenet

SOURCE holds `nips17_test1000_224.tar` (the ImageNet-compatible photographs of NIPS 2017, CC BY 2.0), its list
`nips17_test1000.csv`, and `mobilenet_v1_{0.25_128,0.5_160,0.75_192}_quant.safetensors`: Google Coral's test networks
(Apache-2.0), dequantized, with timm's names.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from snnet import Stage, register_adapter
from snnet.anchors.anchor import Anchor

MULTIPLIERS = {'mobilenet_v1_025': 0.25, 'mobilenet_v1_050': 0.5, 'mobilenet_v1_075': 0.75}
FILES = ('0.25_128', '0.5_160', '0.75_192')
BLOCKS = [
    [f'dsa_r{count}_k3_s{stride}_c{width}']
    for count, stride, width in ((1, 1, 64), (2, 2, 128), (2, 2, 256), (6, 2, 512), (2, 2, 1024))
]

default_cfgs = generate_default_cfgs(
    {
        name: {
            'num_classes': 1000,
            'input_size': (3, 160, 160),
            'crop_pct': 1.0,
            'interpolation': 'bicubic',
            'mean': (128 / 255,) * 3,
            'std': (128 / 255,) * 3,
            'first_conv': 'conv_stem',
            'classifier': 'classifier',
        }
        for name in MULTIPLIERS
    }
)


class MobileNetV1(EfficientNet):
    """timm's network of depthwise pairs, as a separate class so that the adapter applies to it alone."""


class MobileNetV1Anchor(Anchor):
    """The first block, then the twelve others: no residual ties a block to its stage, so any two can be cut apart."""

    def stem(self, x: Tensor) -> Tensor:
        """First convolution."""
        model = self.model
        return model.bn1(model.conv_stem(x))

    def stages(self) -> list[Stage]:
        """Two stages; with only one, the rule would also list stitches that run a block twice."""
        first, *others = (block for stage in self.model.blocks for block in stage)
        return [Stage([first]), Stage(others)]

    def head(self, x: Tensor) -> Tensor:
        """Pooling and classifier."""
        return self.model.forward_head(x)

    def stitch_stages(self) -> range:
        """Both stages."""
        return range(2)


register_adapter(MobileNetV1, MobileNetV1Anchor)


def _entry(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            MobileNetV1, name, pretrained, block_args=decode_arch_def(BLOCKS), num_features=0, stem_size=32,
            round_chs_fn=partial(round_channels, multiplier=MULTIPLIERS[name]), pad_type='same', act_layer=nn.ReLU6,
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3), **kwargs,
        )  # fmt: skip

    build.__name__ = name
    return build


for _name in MULTIPLIERS:
    register_model(_entry(_name))


def write_images(source: Path, target: Path) -> None:
    """Sorts the photographs into one folder per class, alternately for training and validation; lists the classes."""
    with open(source / 'nips17_test1000.csv', newline='') as file:
        rows = sorted((int(row['label']), row['file']) for row in csv.DictReader(file))
    with tarfile.open(source / 'nips17_test1000_224.tar') as tar:
        for i, (label, name) in enumerate(rows):  # sorted by class, so that both halves see most classes
            path = target / ('train', 'validation')[i % 2] / f'{label:03}' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            member = tar.extractfile(name)
            assert member is not None
            path.write_bytes(member.read())
    (target / 'classes.txt').write_text(''.join(f'{label:03}\n' for label in range(1000)))


def main() -> None:
    """Writes images, the list of classes, and the weights under the names that the config uses."""
    parser = argparse.ArgumentParser(description='Turns the public MobileNetV1 and photographs into files.')
    parser.add_argument('source', type=Path, help='folder of the public files')
    parser.add_argument('target', type=Path, help='folder to write images and weights to')
    args = parser.parse_args()
    if not (args.source / 'nips17_test1000.csv').is_file():
        sys.exit(f'{args.source} holds no nips17_test1000.csv')
    write_images(args.source, args.target / 'images')
    for name, file in zip(MULTIPLIERS, FILES, strict=True):
        shutil.copyfile(args.source / f'mobilenet_v1_{file}_quant.safetensors', args.target / f'{name}.safetensors')


if __name__ == '__main__':
    main()
