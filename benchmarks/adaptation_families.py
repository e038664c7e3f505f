"""The families of benchmarks/adaptation.py: nets after least squares, images to adapt with, images to test with."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

import snnet
from snnet.anchors.normalization import Normalization, Renormalize
from snnet.utils.plugins import import_plugins

ROOT = Path(__file__).parents[1]
import_plugins(
    [str(ROOT / 'benchmarks' / 'recalibration.py')]
    + [str(ROOT / 'examples' / f'{name}.py') for name in ('cifar10_family', 'digits', 'mobilenet_v1')]
)
from cifar10_family import TRAIN, VALIDATION, load  # noqa: E402
from digits import MEAN, SIZES, STD, load_digits  # noqa: E402
from mobilenet_v1 import FILES, MULTIPLIERS  # noqa: E402
from recalibration import (  # type: ignore[import-not-found]  # noqa: E402
    TEST_SPRITE,
    Labeled,
    cifar_net,
    photographs,
    sprites,
)


def initialize(net: snnet.StitchableNet, images: Tensor) -> None:
    """Least squares; prints how much of the features behind the joins it does not explain."""
    residuals = [fit.residual for fit in snnet.initialize(net, [images], samples=len(images))]
    print(f'least squares: residuals {min(residuals):.2f} to {max(residuals):.2f} over {len(residuals)} stitch layers')


def digits(args: argparse.Namespace) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """The demo: 1,000 images to adapt, 797 to test."""
    pictures, digits = load_digits()
    images = (torch.from_numpy(pictures / 255).float()[:, None].expand(-1, 3, -1, -1) - MEAN) / STD
    labels = torch.from_numpy(digits)
    if args.net:
        net = snnet.StitchableNet.from_pretrained(args.net)
    else:
        names = ','.join(f'{name}={args.paths[0]}/{name}.safetensors' for name in SIZES)
        net = snnet.create_stitchable_net(names, pretrained=False, **space(args)).eval()
        initialize(net, images[:1000])
    return net, (images[:1000], labels[:1000]), (images[1000:], labels[1000:])


def cifar(args: argparse.Namespace) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """Training sprites to adapt, the test sprite to test."""
    net = cifar_net(args.paths[0], (args.anchors or 'cifar_resnet20,cifar_resnet56').split(','), **space(args))
    if args.everywhere:
        net = joined_everywhere([net.anchor(i) for i in range(len(net.anchors))], args.direction).eval()
    images, labels = sprites(args.paths[0], range(-(-args.samples // 1000)))
    initialize(net, images[:1000])
    return net, (images[: args.samples], labels[: args.samples]), sprites(args.paths[0], (TEST_SPRITE,))


def vit(args: argparse.Namespace) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """Training sprites to adapt, the 4,000 validation images of that script to test."""
    names = args.anchors or 'cifar_vit32,cifar_vit64'
    listed = ','.join(f'{name}={args.paths[1]}/{name}.safetensors' for name in names.split(','))
    net = snnet.create_stitchable_net(listed, pretrained=False, **space(args)).eval()
    images, labels = load(args.paths[0], TRAIN)
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: args.samples]
    initialize(net, images[some[:1000]])
    return net, (images[some], labels[some]), load(args.paths[0], VALIDATION)


def lite(args: argparse.Namespace) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """Half of the photographs to adapt, the other half to test; --swap exchanges them."""
    return halves(args, stitched(args, [efficientnet_lite(weights, args.size) for weights in args.paths[1:]]))


def mobilenet(args: argparse.Namespace) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """As `lite`, with networks from the folder of the photographs."""
    return halves(args, stitched(args, [mobilenet_v1(args, name) for name in MULTIPLIERS]))


def mixed(args: argparse.Namespace) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """As `lite`, with a MobileNetV1 and an EfficientNet-Lite, joined wherever their grids agree."""
    names = (args.anchors or 'mobilenet_v1_025').split(',')
    anchors = [mobilenet_v1(args, name) for name in names]
    anchors += [efficientnet_lite(weights, args.size) for weights in args.paths[1:]]
    return halves(args, joined_everywhere(anchors, args.direction))


def joined_everywhere(anchors: list[snnet.Anchor], direction: str) -> snnet.StitchableNet:
    """A net of neighboring anchors, joined at every pair of positions with one grid, each by its own stitch layer."""
    pairs = list(pairwise(anchors))
    turned = [(end, front) for front, end in pairs]
    chosen = {'fast_to_slow': pairs, 'slow_to_fast': turned, 'two_way': pairs + turned}[direction]
    stitches = [snnet.Stitch((snnet.Leg(anchor.name),)) for anchor in anchors]
    for front, end in chosen:
        for stop in range(1, len(front.line()) + 1):
            for start in range(len(end.line())):
                if front.boundaries[stop].joins(end.boundaries[start]):
                    layer = len(stitches) - len(anchors)
                    legs = snnet.Leg(front.name, None, stop), snnet.Leg(end.name, start, None)
                    stitches.append(snnet.Stitch(legs, (layer,)))
    return snnet.measure_costs(snnet.StitchableNet(anchors, stitches))


def efficientnet_lite(weights: Path, size: int) -> snnet.Anchor:
    """EfficientNet-Lite from a state dict with tensors in timm's order."""
    state = torch.load(weights, map_location='cpu', weights_only=True)
    name = f'tf_efficientnet_lite{weights.stem.partition("lite")[2][0]}'
    model = timm.create_model(name)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return snnet.as_anchor(model.eval(), name.removeprefix('tf_'), input_size=(3, size, size))


def mobilenet_v1(args: argparse.Namespace, name: str) -> snnet.Anchor:
    """A MobileNetV1 from the folder of the photographs."""
    file = dict(zip(MULTIPLIERS, FILES, strict=True))[name]
    model = timm.create_model(name)
    model.load_state_dict(load_file(args.paths[0] / f'mobilenet_v1_{file}_quant.safetensors'))
    return snnet.as_anchor(model.eval(), name, input_size=(3, args.size, args.size))


def stitched(args: argparse.Namespace, anchors: list[snnet.Anchor]) -> snnet.StitchableNet:
    """A net of all stitches of one design."""
    return snnet.create_stitchable_net(anchors, pretrained=False, **space(args))


def space(args: argparse.Namespace) -> dict[str, Any]:
    """Which stitches the net has."""
    return {'direction': args.direction, 'stage_ends': args.stage_ends}


def halves(args: argparse.Namespace, net: snnet.StitchableNet) -> tuple[snnet.StitchableNet, Labeled, Labeled]:
    """A net initialized on half of the photographs, that half, and the other half with its classes."""
    net.eval()
    images, labels = photographs(args.paths[0], args.size)
    wanted = net.anchor(0).normalization
    assert wanted is not None
    images = Renormalize(Normalization((0.5,) * 3, (0.5,) * 3), wanted)(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    fit, test = (second, first) if args.swap else (first, second)
    initialize(net, images[fit])
    fit = fit[: args.samples]
    return net, (images[fit], labels[fit]), (images[test], labels[test])


FAMILIES = {'digits': digits, 'cifar': cifar, 'lite': lite, 'mobilenet': mobilenet, 'mixed': mixed, 'vit': vit}
