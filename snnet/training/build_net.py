"""The net of a training run: its anchors, its stitches, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..anchors.names import has_local_weights, split_names
from ..config.sections import option
from ..net.create import create_stitchable_net
from ..net.stitchable_net import StitchableNet
from ..utils.seeds import generator


@dataclass
class NetSettings:
    """Which networks are stitched, how, and what is trained of them."""

    anchors: str = option(
        '',
        'networks to stitch, separated by commas (or a list in YAML): NAME, NAME=FILE, FOLDER, hf-hub:OWNER/NAME or '
        'local-dir:FOLDER',
    )
    plugin: list[str] = option([], 'Python files that register networks and adapters', free=True)
    pretrained: bool = option(True, 'load weights (NAME=FILE always does)')
    num_classes: int | None = option(None, 'classes (default: those of the weights)')
    img_size: int | None = option(None, 'height and width of the images in pixels (default: those of the weights)')
    window: int = option(2, 'width of the sliding window over equally deep stages')
    step: int = option(1, 'advance of the sliding window')
    nearest: bool = option(True, 'stitch only anchors next to each other in cost')
    direction: str = option('fast_to_slow', 'fast_to_slow, slow_to_fast or two_way')
    drop_path: float | None = option(None, 'rate of stochastic depth')
    freeze_anchors: bool = option(False, 'train stitch layers only; of a reassembled network seams, head, new stem')
    stitch_rank: int = option(
        0, "rank of the update trained in place of a stitch layer's weight (0: the weight)", least=0
    )

    @property
    def learned(self) -> bool:
        """Whether any anchor starts from learned weights."""
        return self.pretrained or any(has_local_weights(name) for name in split_names(self.anchors))


def build_net(settings: NetSettings) -> StitchableNet:
    """The net that the settings name."""
    return create_stitchable_net(
        settings.anchors,
        pretrained=settings.pretrained,
        num_classes=settings.num_classes,
        img_size=settings.img_size,
        window=settings.window,
        step=settings.step,
        nearest=settings.nearest,
        direction=settings.direction,
        drop_path_rate=settings.drop_path,
    )


def choose_trained_weights(settings: NetSettings, net: StitchableNet, seed: int) -> None:
    """Freezes the anchors, and starts low-rank updates of the stitch layers, where the settings say so."""
    if settings.freeze_anchors:
        for i in range(len(net.anchors)):
            net.anchor(i).freeze()
    for i in range(len(net.stitch_layers) if settings.stitch_rank else 0):
        net.layer(i).start_update(settings.stitch_rank, generator(seed, 'update', i))
