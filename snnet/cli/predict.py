"""`snnet predict FOLDER IMAGES`: names the classes of images."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.sections import option
from ..errors import SnnetError

if TYPE_CHECKING:
    from torch import Tensor

    from ..net.predict import Prediction
    from ..net.stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
POSITIONAL = ('folder', 'images')


@dataclass
class PredictSettings:
    """Settings of `snnet predict`."""

    folder: str = option('', 'folder of a saved net, its id on the Hub, or a published checkpoint')
    images: list[str] = option([], 'image files, or folders that are searched for images')
    stitch: int | None = option(None, 'id of the stitch to run (default: the most accurate one)')
    flops: float | None = option(None, 'run the best stitch of at most this many FLOPs (multiply-adds per image)')
    params: float | None = option(None, 'run the best stitch of at most this many parameters')
    latency_ms: float | None = option(None, 'run the best stitch of at most this many milliseconds, as profiled')
    topk: int = option(5, 'classes per image', least=1)
    out: str = option('', 'file for the results: .csv, .json or .parquet')
    class_map: str = option('', "file with one class name per line, or 'imagenet' (default: the names in the net)")
    batch_size: int = option(32, 'images per run', least=1)
    workers: int = option(2, 'threads that read images', least=1)
    device: str = option('', 'cpu or cuda (default: a GPU if there is one)')
    table: str = option('', 'latency table to use, even if it was made elsewhere or with other weights')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: PredictSettings) -> int:
    """Prints the most probable classes of each image, and writes them into a file where one is named.

    Returns:
        The exit code: 1 where an image could not be read, else 0.

    Raises:
        SnnetError: bad settings, no net, no images, or no stitch that fits.
        OSError: the file cannot be written.
    """
    import torch  # here, so that --help does not load torch

    from ..budget.latency_table import LatencyTable
    from ..config.sections import check_ranges
    from ..net.open_net import open_net
    from ..net.predict import refuse_without_classes
    from ..utils.plugins import import_plugins
    from .write_predictions import check_format, write_predictions

    check_ranges(settings)
    if settings.out:
        check_format(Path(settings.out))
    files = find_images(settings.images)
    import_plugins(settings.plugin)
    device = settings.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device not in ('cpu', 'cuda') or (device == 'cuda' and not torch.cuda.is_available()):
        raise SnnetError(f"device is cpu or cuda{'' if device != 'cuda' else ', and there is no GPU'}, not '{device}'")
    net = open_net(settings.folder).to(device)
    if settings.table:
        net.add_table(LatencyTable.read(Path(settings.table)), force=True)
    refuse_without_classes(net)
    _name_classes(net, settings.class_map)
    stitch = _choose(net, settings)
    found, unreadable = dict[str, Any](), 0
    for file, result in _predictions(net, files, stitch, settings):
        if isinstance(result, str):
            print(f'{file} cannot be read: {result}', file=sys.stderr)
            unreadable += 1
            continue
        found[file] = result
        if not settings.out:
            print(f'{file}: {result}')
    if settings.out:
        write_predictions(Path(settings.out), found)
        print(f'wrote {settings.out}: {len(found)} images')
    if unreadable:
        print(f'{unreadable} of {len(files)} images cannot be read', file=sys.stderr)
    return int(unreadable > 0)


def find_images(places: list[str]) -> list[str]:
    """Files as they are named, and the images in folders, sorted.

    Raises:
        SnnetError: a place does not exist, or there are no images at all.
    """
    from timm.data import get_img_extensions

    from ..data.folder_checks import OTHER_ENDINGS

    endings, found = set(get_img_extensions(as_set=True)), list[str]()
    for place in places:
        if not Path(place).exists():
            raise SnnetError(f"there is no image or folder '{place}'")
        inside = sorted(Path(place).rglob('*')) if Path(place).is_dir() else [Path(place)]
        chosen = [path for path in inside if path.is_file() and (path.suffix.lower() in endings or str(path) == place)]
        found += map(str, chosen)
        unread = [path for path in inside if path.suffix.lower() in OTHER_ENDINGS - endings and path not in chosen]
        if unread:
            _log.warning(
                "%d images in '%s' are left out for their endings, such as %s: name these files themselves",
                len(unread), place, unread[0],
            )  # fmt: skip
    if not found:
        raise SnnetError(f'no images in {", ".join(map(repr, places)) or "no place: name files or folders"}')
    return list(dict.fromkeys(found))


def _choose(net: StitchableNet, settings: PredictSettings) -> int:
    """The stitch to run; says which it is."""
    flops, params, latency_ms = settings.flops, settings.params, settings.latency_ms
    given = any(limit is not None for limit in (flops, params, latency_ms))
    if settings.stitch is not None:
        if given:
            raise SnnetError('choose a stitch (--stitch ID) or limits that it must keep, not both')
        stitch = net.checked(settings.stitch)
        print(f'stitch {stitch} ({net.stitches[stitch]})', file=sys.stderr)
        return stitch
    limits = (flops, params, latency_ms) if given else (sys.float_info.max, None, None)
    selection = net.choose(limits[0], params=limits[1], latency_ms=limits[2])
    print(str(selection).removesuffix(' within the budget') if not given else selection, file=sys.stderr)
    return selection.record.stitch


def _name_classes(net: StitchableNet, class_map: str) -> None:
    from ..anchors.class_names import imagenet_names, readable

    if class_map == 'imagenet':
        names = imagenet_names(net.num_classes)
        if names is None:
            raise SnnetError(f'timm knows no subset of ImageNet with {net.num_classes} classes')
        net.class_names = names
    elif class_map:
        try:
            lines = Path(class_map).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SnnetError(f'class map {class_map} cannot be read: {error}') from None
        net.class_names = readable(line.strip() for line in lines if line.strip())
    elif net.class_names is None:
        print('the net has no class names, so classes are numbers (--class-map names them)', file=sys.stderr)


def _predictions(
    net: StitchableNet, files: list[str], stitch: int, settings: PredictSettings
) -> Iterator[tuple[str, Prediction | str]]:
    """For each file its prediction, or the reason why it cannot be read."""
    from concurrent.futures import ThreadPoolExecutor

    from ..net.predict import ImagePreparer, classify
    from ..utils.progress import Progress
    from ..utils.read_rgb import Unreadable

    prepare, progress = ImagePreparer(net), Progress(len(files), 'images')

    def read(file: str) -> Tensor | str:
        try:
            return prepare(file)
        except Unreadable as error:
            return str(error)

    with ThreadPoolExecutor(settings.workers) as pool:
        for at in range(0, len(files), settings.batch_size):
            part = files[at : at + settings.batch_size]
            results: list[Any] = list(pool.map(read, part))
            readable = [result for result in results if not isinstance(result, str)]
            answers = iter(classify(net, readable, stitch, settings.topk) if readable else ())
            yield from ((f, r if isinstance(r, str) else next(answers)) for f, r in zip(part, results, strict=True))
            progress.update(len(part))
    progress.close()
