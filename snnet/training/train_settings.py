"""The settings of train.py: a section for each part of a run, and what concerns the run as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.sections import option, section
from ..config.seeds_and_device import SeedSettings
from ..data.train_images import TrainDataSettings
from ..data.transforms import AugmentationSettings
from .adapt_stitches import AdaptationSettings
from .build_net import NetSettings
from .checkpoint import CheckpointSettings
from .compute_settings import TrainComputeSettings
from .distillation import DistillationSettings
from .gradient_exchange import RanksSettings
from .growth import GrowthSettings
from .head_settings import HeadSettings
from .initialize_layers import InitializationSettings
from .mixup import MixupSettings
from .optimizer import OptimizerSettings, ScheduleSettings
from .samplers import SamplingSettings
from .train_step import UpdateSettings
from .weight_average import AverageSettings


@dataclass
class TrainSettings:
    """Settings of train.py; names and meanings are timm's wherever timm has them.

    Attributes:
        noted: what `config.yaml` of a run holds beside the settings (`RunFolder.note_settings`).
    """

    noted: ClassVar[tuple[str, ...]] = ('world',)

    output: str = option('output/train', 'folder for checkpoints, logs and the net', free=True)
    resume: bool = option(True, 'continue the run in the output folder, if it holds one', free=True)
    log_interval: int = option(50, 'steps between log lines', free=True, least=1)
    log_to: list[str] = option([], 'where the log also goes: tensorboard, wandb (default: only log.jsonl)', free=True)
    recalibrate: int = option(
        1000, 'training images for BatchNorm statistics of every stitch, at the end; 0 for none', least=0
    )
    net: NetSettings = section(NetSettings)
    heads: HeadSettings = section(HeadSettings)
    initialization: InitializationSettings = section(InitializationSettings)
    data: TrainDataSettings = section(TrainDataSettings)
    augmentation: AugmentationSettings = section(AugmentationSettings)
    mixing: MixupSettings = section(MixupSettings)
    sampling: SamplingSettings = section(SamplingSettings)
    distillation: DistillationSettings = section(DistillationSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    schedule: ScheduleSettings = section(ScheduleSettings)
    update: UpdateSettings = section(UpdateSettings)
    average: AverageSettings = section(AverageSettings)
    growth: GrowthSettings = section(GrowthSettings)
    adaptation: AdaptationSettings = section(AdaptationSettings)
    compute: TrainComputeSettings = section(TrainComputeSettings)
    seeds: SeedSettings = section(SeedSettings)
    checkpoints: CheckpointSettings = section(CheckpointSettings)
    ranks: RanksSettings = section(RanksSettings)
