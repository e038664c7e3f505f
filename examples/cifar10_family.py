"""Two families with room between their anchors, trained from scratch on 17,000 CIFAR-10 images in half an hour.

A plugin that registers with timm vision transformers of width 32, 64 and 128 and residual networks of depth 8, 20 and
32, and a script that writes the images and trains the anchors of one family:

    python examples/cifar10_family.py SOURCE output/family --family vit

SOURCE holds the sprites of CIFAR-10 (see cifar10_resnet.py). Sprites 0-16 are for training; 17-19 and 50 make 4,000
validation images, which neither the anchors nor the stitches see.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from snnet.utils.plugins import import_plugins
from snnet.utils.seeds import generator, key

import_plugins([str(Path(__file__).with_name('cifar10_resnet.py'))])
from cifar10_resnet import CifarResNet, read_sprite, write_images  # noqa: E402

WIDTHS = {'cifar_vit32': 32, 'cifar_vit64': 64, 'cifar_vit128': 128}
BLOCKS = {'cifar_thin8': 1, 'cifar_thin20': 3, 'cifar_thin32': 5}
"""Blocks in each of the three stages."""
FAMILIES = {
    'vit': ('cifar_vit32', 'cifar_vit64', 'cifar_vit128'),
    'resnet': tuple(BLOCKS),
}
TRAIN, VALIDATION = tuple(range(17)), (17, 18, 19, 50)
"""Numbers of the sprites."""
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
BATCH = 128
EPOCHS = {'vit': 18, 'resnet': 6}

default_cfgs = generate_default_cfgs(
    {
        name: {
            'num_classes': 10,
            'input_size': (3, 32, 32),
            'fixed_input_size': name in WIDTHS,
            'crop_pct': 1.0,
            'mean': MEAN,
            'std': STD,
            'first_conv': 'patch_embed.proj.0' if name in WIDTHS else 'conv1',
            'classifier': 'head' if name in WIDTHS else 'fc',
        }
        for name in (*WIDTHS, *BLOCKS)
    }
)


class ConvEmbed(PatchEmbed):
    """Three 3x3 convolutions of stride 2 in place of one of 8x8: a small transformer learns faster from them."""

    def __init__(self, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        layers: list[nn.Module] = []
        widths = (3, embed_dim // 4, embed_dim // 2, embed_dim)
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.proj = nn.Sequential(*layers[:-1])


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    if name in BLOCKS:
        return build_model_with_cfg(CifarResNet, name, pretrained, blocks=BLOCKS[name], width=8, **kwargs)
    width = WIDTHS[name]
    shape = {'patch_size': 8, 'embed_dim': width, 'num_heads': width // 16, 'depth': 6, 'embed_layer': ConvEmbed}
    return build_model_with_cfg(VisionTransformer, name, pretrained, **shape, **kwargs)


def _entry(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _build(name, pretrained, **kwargs)

    build.__name__ = name
    return build


for _name in (*WIDTHS, *BLOCKS):
    register_model(_entry(_name))


def load(source: Path, sprites: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Normalized images (N, 3, 32, 32) of sprites and their classes (N,)."""
    parts = [read_sprite(source, number) for number in sprites]
    images = torch.cat([torch.from_numpy(images.copy()) for images, _ in parts]).permute(0, 3, 1, 2) / 255
    labels = torch.tensor([label for _, labels in parts for label in labels])
    return ((images - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)).contiguous(), labels


def batches(images: Tensor, labels: Tensor, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Whole batches of an epoch: images shifted by up to 4 pixels and flipped at random, classes, indices."""
    draw = generator(seed, 'family', epoch)
    order = torch.randperm(len(images), generator=draw)
    for index in order[: len(order) // BATCH * BATCH].split(BATCH):
        down, right = torch.randint(0, 9, (2, BATCH, 1), generator=draw) + torch.arange(32)
        flipped = torch.rand(BATCH, 1, generator=draw) < 0.5
        right = torch.where(flipped, right.flip(1), right)
        padded = F.pad(images[index], (4, 4, 4, 4))
        rows = padded.gather(2, down[:, None, :, None].expand(-1, 3, -1, 40))
        yield rows.gather(3, right[:, None, None, :].expand(-1, 3, 32, -1)), labels[index], index


def train_anchor(name: str, images: Tensor, labels: Tensor, epochs: int, seed: int = 0) -> nn.Module:
    """An anchor from scratch: AdamW for transformers, SGD for residual networks, one cycle of the learning rate."""
    torch.manual_seed(key(seed, name))
    model = timm.create_model(name).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    parameters, steps = model.parameters(), epochs * (len(images) // BATCH)
    optimizer: torch.optim.Optimizer
    if name in WIDTHS:
        optimizer, lr = torch.optim.AdamW(parameters, weight_decay=0.05), 3e-3
    else:
        optimizer, lr = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, weight_decay=5e-4), 0.2
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    began = time.monotonic()
    for epoch in range(epochs):
        for x, y, _ in batches(images, labels, seed, epoch):
            loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        took = time.monotonic() - began
        print(f'{name}: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}, {took:.0f} s', flush=True)
    return model.eval()


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that are right."""
    answers = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return 100 * float((answers == labels).float().mean())


def main() -> None:
    """Writes the images and trains the anchors of a family."""
    parser = argparse.ArgumentParser(description='Trains a family of three small networks on CIFAR-10.')
    parser.add_argument('source', type=Path, help='folder of the sprites')
    parser.add_argument('target', type=Path, help='folder to write images and weights to')
    parser.add_argument('--family', choices=FAMILIES, required=True)
    parser.add_argument('--epochs', type=int, help=f'passes over the images (default: {EPOCHS})')
    args = parser.parse_args()
    for split, sprites in (('train', TRAIN), ('validation', VALIDATION)):
        if not (args.target / 'images' / split).exists():
            write_images(args.source, args.target / 'images', split, sprites)
    images, labels = load(args.source, TRAIN)
    for name in FAMILIES[args.family]:
        if (args.target / f'{name}.safetensors').exists():
            continue
        model = train_anchor(name, images, labels, args.epochs or EPOCHS[args.family])
        save_file(model.to(memory_format=torch.contiguous_format).state_dict(), args.target / f'{name}.safetensors')
        print(f'{name}: {top1(model, *load(args.source, VALIDATION)):.2f} % of the validation images right', flush=True)


if __name__ == '__main__':
    main()
