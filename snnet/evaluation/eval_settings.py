"""The settings of eval_stitches.py."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option, section
from ..config.seeds_and_device import ComputeSettings
from ..data.datasets import DataSettings
from ..data.transforms import PreprocessingSettings


@dataclass
class EvalSettings:
    """Settings of eval_stitches.py."""

    net: str = option(
        '', 'folder of a saved net, its id on the Hub (OWNER/NAME or OWNER/NAME@REVISION), or a published checkpoint'
    )
    output: str = option(
        '', 'folder for results (default: evaluation, in the folder of the net; output/evaluation/OWNER/NAME or FILE)'
    )
    overwrite: bool = option(False, 'discard results in the output folder instead of resuming')
    val_split: str = option('validation', 'name of the split to evaluate')
    stitches: str = option('', "ids to evaluate, such as '0-2,24' (default: all)")
    confusion: int | None = option(None, 'id of a stitch: also write which classes it takes for which')
    images: int | None = option(None, 'number of images to evaluate, evenly spread (default: all)')
    recalibrate: int = option(
        0,
        'training images for BatchNorm statistics of every stitch, kept in the folder of the net; 0 keeps what it has',
        least=0,
    )
    train_split: str = option('train', 'name of the split to recalibrate with')
    suffix_batch: int | None = option(
        None,
        'most images in a batch of several stitches with the same end; 0 merges none (default: 512 on a GPU, 0)',
    )
    plugin: list[str] = option([], 'Python files that register networks and adapters', free=True)
    data: DataSettings = section(DataSettings)
    preprocessing: PreprocessingSettings = section(PreprocessingSettings)
    compute: ComputeSettings = section(ComputeSettings)
