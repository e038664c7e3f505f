"""The report of a training run or of an evaluation, as one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..budget.plot import draw_curve
from ..data.datasets import DataSettings, open_dataset
from ..data.decode import Pictures
from ..errors import MissingExtra, SnnetError
from ..net.stitchable_net import StitchableNet
from ..saving.file_names import CONFIG
from ..saving.hub import locate
from ..utils.figures import make_figure, save_figure
from ..utils.files import write_text
from ..utils.json_lines import JsonLines
from ..utils.read_rgb import Unreadable
from .demanding_images import demanding_images
from .evaluate import spread
from .hits import HITS, read_hits, read_targets
from .report_page import Chart, ShownImage, page

_SMOOTH = 50
"""Points of the smoothed loss."""


def write_report(
    folder: str, out: str, data: DataSettings, split: str, evaluation: str = '', examples: int = 12
) -> Path:
    """Writes the page and returns its path.

    Args:
        folder: output folder of a training run, folder of a saved net, or its id on the Hub.
        out: file to write; by default report.html in the folder.
        data: the images that were evaluated, for examples; none are shown where no folder or data set is named.
        split: its name.
        evaluation: folder of the results; by default evaluation, in the folder of the net.
        examples: how many images to show at most.

    Raises:
        SnnetError: no net, or images that are not those that were evaluated.
    """
    run = Path(folder)
    place = run / 'net' if (run / 'net' / CONFIG).is_file() else locate(folder)
    net = StitchableNet.from_pretrained(place)
    path = Path(out) if out else (run if run.is_dir() else Path()) / 'report.html'
    if not path.parent.is_dir():
        raise SnnetError(f"there is no folder '{path.parent}' for the report")
    hits = (Path(evaluation) if evaluation else place / 'evaluation') / HITS
    asked = bool(data.data_dir or data.dataset)
    images = _examples(net, data, split, hits, examples) if asked else []
    charts = [_drawn('Accuracy over cost', lambda file: draw_curve(net.records, file))]
    log = next((file for file in (run / 'log.jsonl', place.parent / 'log.jsonl') if file.is_file()), None)
    if log is not None:
        rows = JsonLines(log).read()
        charts.append(_drawn(f'Loss of {len(rows)} logged steps', lambda file: _draw_losses(rows, file)))
    write_text(path, page(net.title, _facts(net, bool(images), asked), charts, net.records, images))
    return path


def _facts(net: StitchableNet, images: bool, asked: bool) -> list[str]:
    size = 'x'.join(map(str, net.input_size))
    more = ', ...' if net.num_classes > 10 else ''
    names = f' ({", ".join(net.class_names[:10])}{more})' if net.class_names else ''
    anchors = f'{len(net.stitches)} stitches of {len(net.anchors)} anchors'
    facts = [f'{anchors}, images {size}, {net.num_classes} classes{names}.']
    if net.several_labels:
        facts.append('Images have several labels: a probability is that of one class by itself.')
    counts = sorted({record.n for record in net.records if record.n})
    if counts:
        facts.append(f'Accuracy was measured on {" or ".join(f"{count:,}" for count in counts)} images.')
    else:
        facts.append('No stitch has been evaluated yet: eval_stitches.py does.')
    if counts and not images:
        why = 'none of them is right only with larger stitches' if asked else 'name them with --data-dir'
        facts.append(f'No images are shown: {why}.')
    return facts


def _drawn(title: str, draw: Callable[[Path], Sequence[Path]]) -> Chart:
    """A chart, or the reason why there is none."""
    try:
        with TemporaryDirectory() as scratch:
            files = draw(Path(scratch) / 'chart')
            svg = next(file for file in files if file.suffix == '.svg').read_text(encoding='utf-8')
    except (MissingExtra, SnnetError) as error:
        return Chart(title, note=f'No picture: {error}')
    return Chart(title, svg[svg.index('<svg') :])


def _draw_losses(rows: Sequence[dict[str, Any]], path: Path) -> Sequence[Path]:
    points = [(row['step'], row['loss']) for row in rows if isinstance(row.get('loss'), int | float)]
    if not points:
        raise SnnetError('the log holds no losses')
    steps, losses = (np.array(values, float) for values in zip(*points, strict=True))
    figure = make_figure(7, 3.5)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color='0.8', linewidth=1, label='step')
    width = max(1, len(losses) // _SMOOTH)
    if width > 1:
        smooth = np.convolve(losses, np.ones(width) / width, 'valid')
        axes.plot(steps[width - 1 :], smooth, color='tab:blue', label=f'mean of {width} logged steps')
    axes.set(xlabel='step', ylabel='loss')
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, path)


def _examples(net: StitchableNet, data: DataSettings, split: str, hits: Path, count: int) -> list[ShownImage]:
    """Images that only larger stitches get right, with what the cheapest and the first right one say of them."""
    found = read_hits(hits)
    if not found:
        raise SnnetError(f'{hits} holds no results: evaluate first (eval_stitches.py), or leave --data-dir out')
    dataset = open_dataset(data, split, net)
    pictures = Pictures(dataset)
    evaluated = len(next(iter(found.values())))
    if evaluated > len(pictures):
        raise SnnetError(f'{evaluated} images were evaluated, but there are {len(pictures)}: name the same split')
    indices, targets = spread(len(pictures), evaluated), read_targets(hits)
    cheapest = min((r for r in net.records if r.stitch in found), key=lambda r: (r.flops or 0, r.stitch)).stitch
    shown = []
    for image, record in demanding_images(net.records, found, count):
        try:
            picture, target = pictures.read(indices[image])
        except Unreadable as error:
            raise SnnetError(f'{pictures.path(indices[image])!r} cannot be read: {error}') from None
        if targets is not None and int(targets[image]) != target:
            raise SnnetError(
                f"the split '{split}' of '{data.data_dir or data.dataset}' does not hold the images that were "
                f'evaluated: image {indices[image]} is of class {target}, then it was of class {int(targets[image])}'
            )
        said = [net.predict(picture, stitch=stitch, topk=1)[0] for stitch in (cheapest, record.stitch)]
        name = _named(net, target)
        text = (
            f'right from stitch {record.stitch} on ({(record.flops or 0) / 1e9:.3g} GFLOPs: {said[1]}); '
            f'the cheapest stitch says {said[0]}'
        )
        shown.append(ShownImage(picture, name, text))
    return shown


def _named(net: StitchableNet, target: Any) -> str:
    """What an image shows: its class, or those of its labels (a 0 or 1 for every class)."""
    classes = [i for i, there in enumerate(target) if there] if isinstance(target, Sequence) else [target]
    return ', '.join(net.class_names[i] if net.class_names else f'class {i}' for i in classes) or 'none of the classes'
