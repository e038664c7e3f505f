"""Branches that grow (DyRep) against none and against four from the start (DBB), at equal epochs, on one core.

A plugin that registers a small VGG with timm, and a script that trains thin networks on 5,000 CIFAR-10 images, and the
family of the demo with and without grown stitch layers; what is done is not done again:

    python examples/grow.py SOURCE output/grow --networks vgg resnet
    python examples/digits.py output/demo
    python examples/grow.py output/demo output/grow --networks digits

SOURCE holds the sprites of CIFAR-10 (see cifar10_resnet.py). Results go to runs.jsonl in the output folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from snnet.budget.frontier import area
from snnet.config.sections import from_flat
from snnet.evaluation.eval_settings import EvalSettings
from snnet.evaluation.evaluate import evaluate
from snnet.net.stitchable_net import StitchableNet
from snnet.reparam import DBB
from snnet.reparam.flops_meter import FlopsMeter
from snnet.training.train_settings import TrainSettings
from snnet.training.trainer import train
from snnet.utils.json_lines import JsonLines
from snnet.utils.plugins import import_plugins

HERE = Path(__file__).parent
import_plugins([str(HERE / name) for name in ('cifar10_family.py', 'digits.py')])
from cifar10_family import MEAN, STD  # noqa: E402
from cifar10_resnet import TEST_SPRITE, write_images  # noqa: E402

SHAPE = (8, 8, 0, 16, 16, 0, 32, 32, 32)
"""Widths; 0 halves the map."""
TRAIN = range(5)
"""Numbers of the sprites."""
default_cfgs = generate_default_cfgs(
    {
        'cifar_vgg': {
            'num_classes': 10, 'input_size': (3, 32, 32), 'crop_pct': 1.0, 'mean': MEAN, 'std': STD,
            'first_conv': 'features.0', 'classifier': 'fc',
        },
        'cifar_vgg16': {
            'num_classes': 10, 'input_size': (3, 32, 32), 'crop_pct': 1.0, 'mean': MEAN, 'std': STD,
            'first_conv': 'features.0', 'classifier': 'fc.2',
        },
    }
)  # fmt: skip


class SmallVgg(nn.Module):
    """Convolutions, each with a BatchNorm, and a linear classifier on their means."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for width in SHAPE:
            if width:
                layers += [nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                in_chans = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(in_chans, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        return self.fc(self.features(x).mean((2, 3)))


@register_model
def cifar_vgg(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Seven convolutions of width 8 to 32."""
    return build_model_with_cfg(SmallVgg, 'cifar_vgg', pretrained, **kwargs)


class Vgg16(nn.Module):
    """VGG-16 for 32 x 32 images as DyRep's tables have it: 313 million multiply-adds, 15.0 million parameters."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            if width:
                layers += [nn.Conv2d(in_chans, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_chans = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, classes)."""
        return self.fc(self.features(x).flatten(1))


@register_model
def cifar_vgg16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Thirteen convolutions of width 64 to 512."""
    return build_model_with_cfg(Vgg16, 'cifar_vgg16', pretrained, **kwargs)


CIFAR: dict[str, Any] = {
    'pretrained': False, 'teacher': 'none', 'batch_size': 50, 'opt': 'sgd', 'lr': 0.1, 'min_lr': 0.0,
    'weight_decay': 5e-4, 'warmup_epochs': 0, 'clip_grad': 1.0, 'smoothing': 0.0, 'scale': (0.6, 1.0),
    'color_jitter': 0.0, 'channels_last': True,
}  # fmt: skip
SIZES = ('small', 'medium', 'large')
NETWORKS: dict[str, dict[str, Any]] = {
    'vgg': {**CIFAR, 'anchors': 'cifar_vgg', 'epochs': 4},
    'resnet': {**CIFAR, 'anchors': 'cifar_thin20', 'epochs': 2},
    'digits': {
        'teacher': 'largest', 'init_samples': 1000, 'batch_size': 50, 'epochs': 30, 'warmup_epochs': 2, 'lr': 2e-3,
        'scale': (0.8, 1.0), 'hflip': 0.0, 'color_jitter': 0.0, 'smoothing': 0.0, 'grow_where': ['stitch_layers'],
    },
}  # fmt: skip
DYREP = {'DyRep, every 10 steps': {'grow_every': 10}, 'DyRep, every 40 steps': {'grow_every': 40}}
WAYS: dict[str, dict[str, Any]] = {
    'plain': {},
    'DBB, four branches': {'grow_static': True, 'grow_kinds': list(DBB)},
    **DYREP,
}
STITCH_WAYS: dict[str, dict[str, Any]] = {
    'plain': {'grow_where': []},
    'all branches from the start': {'grow_static': True},
    **DYREP,
}


def run(network: str, way: str, seed: int, data: Path, output: Path) -> dict[str, Any]:
    """Trains and evaluates one net; the row of its results."""
    folder = output / f'{network}-{way.replace(", ", "-").replace(" ", "-")}-{seed}'
    changes = {**NETWORKS[network], **(STITCH_WAYS if network == 'digits' else WAYS)[way]}
    if network == 'digits':
        changes['anchors'] = ','.join(f'digits_{size}={data}/digits_{size}.safetensors' for size in SIZES)
    common: dict[str, Any] = {'data_dir': str(data / 'images'), 'workers': 0, 'device': 'cpu'}
    began = time.process_time()
    saved = train(
        from_flat(TrainSettings, {**common, **changes, 'output': str(folder), 'seed': seed, 'log_interval': 1})
    )
    took = time.process_time() - began
    net, _ = evaluate(from_flat(EvalSettings, {**common, 'net': str(saved), 'batch_size': 100}))
    rows = JsonLines(folder / 'log.jsonl').read()
    tops = [record.top1 or 0.0 for record in net.records]
    return {
        'network': network, 'way': way, 'seed': seed, 'top1': mean(tops), 'cpu_seconds': took,
        'flops': _relative_flops(rows, net),
        'loss': mean(row['loss'] for row in rows[-20:]),
        'steps': len(rows),
        'changes': [[row['step'], *c.values()] for row in rows for c in row.get('changes', ())],
        **({'area': area(net.records)} if network == 'digits' else {}),
    }  # fmt: skip


def _relative_flops(rows: list[dict[str, Any]], net: StitchableNet) -> float:
    """Multiply-adds of the mean step as a multiple of the plain net's; a stitch runs one of the stitch layers."""
    if 'train_flops' not in rows[0]:
        return 1.0
    meter = FlopsMeter(net)
    for anchor in net.anchors:
        anchor(torch.zeros(1, *net.input_size))
    spent = [row['train_flops'] for row in [rows[0], *rows[:-1]]]  # each line holds the cost of the next step
    more = mean(spent) - meter.total()
    return 1 + more / max(1, len(net.stitch_layers)) / mean(net.records[row['stitch']].flops or 0 for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, and differences to plain training paired by seed, each with one standard error."""
    lines = ['| network | way | top-1 | against plain | training FLOPs | CPU seconds |', '|---|---|---|---|---|---|']
    for network in dict.fromkeys(row['network'] for row in rows):
        for number, name in (('top1', network), *((('area', 'digits, area'),) if network == 'digits' else ())):
            here = [row for row in rows if row['network'] == network]
            plain = {row['seed']: row[number] for row in here if row['way'] == 'plain'}
            for way in dict.fromkeys(row['way'] for row in here):
                own = [row for row in here if row['way'] == way]
                apart = [row[number] - plain[row['seed']] for row in own if row['seed'] in plain and way != 'plain']
                cells = [name, way, _told([row[number] for row in own]), _told(apart, '+')]
                cells += [f'{mean(row[what] for row in own):.{n}f}' for what, n in (('flops', 2), ('cpu_seconds', 0))]
                lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _told(values: list[float], sign: str = '') -> str:
    if not values:
        return ''
    error = f' ± {stdev(values) / len(values) ** 0.5:.2f}' if len(values) > 1 else ''
    return f'{mean(values):{sign}.2f}{error}'


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The number of branches beside every convolution over the steps, of the first seed of every network that grows."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row['changes'] and row['seed'] == rows[0]['seed']]
    figure = Figure(figsize=(5 * min(2, len(shown)), 2.6 * -(-len(shown) // 2)), layout='constrained')
    for number, row in enumerate(shown, start=1):
        axes = figure.add_subplot(-(-len(shown) // 2), min(2, len(shown)), number)
        names = sorted({name for _, name, *_ in row['changes']}, key=_in_order)
        counts = np.zeros((len(names), row['steps']))
        for step, name, added, cut in row['changes']:
            counts[names.index(name), step + 1 :] += len(added) - len(cut)
        image = axes.imshow(counts, aspect='auto', vmin=0, vmax=6, cmap='Blues', interpolation='nearest')
        labels = [name.removeprefix('anchors.0.model.') for name in names]
        axes.set_yticks(range(len(names)), labels, fontsize=5 if len(names) > 8 else 7)
        axes.set(title=f'{row["network"]}: {row["way"]}', xlabel='step')
        figure.colorbar(image, ax=axes, label='branches')
    figure.savefig(path)


def _in_order(name: str) -> list[tuple[bool, int | str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split('.')]


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description='Compares branches that grow with none and with four.')
    parser.add_argument('source', type=Path, help='folder of the sprites, or of the demo for digits')
    parser.add_argument('output', type=Path, help='folder of images, runs and results')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=['vgg', 'resnet'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3])
    parser.add_argument('--ways', nargs='+', choices=[*WAYS, *STITCH_WAYS], default=[*WAYS, *STITCH_WAYS])
    args = parser.parse_args()
    results = JsonLines(args.output / 'runs.jsonl')
    for network in args.networks:
        data = args.source if network == 'digits' else args.output
        for split, sprites in (('train', TRAIN), ('validation', (TEST_SPRITE,))):
            if not (data / 'images' / split).exists():
                write_images(args.source, data / 'images', split, sprites)
        for seed in args.seeds:
            for way in STITCH_WAYS if network == 'digits' else WAYS:
                done = {(row['network'], row['way'], row['seed']) for row in results.read()}
                if way in args.ways and (network, way, seed) not in done:
                    results.append(run(network, way, seed, data, args.output))
                    print(results.read()[-1], flush=True)
    print(table(results.read()))
    draw(results.read(), args.output / 'structure.svg')


if __name__ == '__main__':
    main()
