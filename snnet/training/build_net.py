"""The net of a training run: its anchors, its stitches, and which of its weights are trained."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..anchors.anchor import Anchor
from ..anchors.names import has_local_weights, is_whole_net, split_names
from ..anchors.new_head import classifier_modules
from ..anchors.weights import network_of_file
from ..config.sections import option
from ..data.datasets import count_classes
from ..data.train_images import TrainDataSettings
from ..errors import NoWeights, SnnetError
from ..net.create import create_stitchable_net
from ..net.open_net import open_net
from ..net.stitchable_net import StitchableNet
from ..utils.seeds import generator
from .low_rank import LowRankUpdate, start_updates

_log = logging.getLogger(__name__)

EACH = 'each'
TUNED = ('heads', 'stitches', 'lora', 'all', EACH)
"""What may be trained of a net, from little to all."""
_OF_THE_SPACE = ('window', 'step', 'nearest', 'direction', 'stage_ends', 'drop_path', 'img_size')
"""Settings that a net which is there already has decided."""


@dataclass
class NetSettings:
    """Which networks are stitched, how, and what is trained of them."""

    anchors: str = option(
        '',
        'networks to stitch, separated by commas (or a list in YAML): NAME, NAME=FILE, FOLDER, hf-hub:OWNER/NAME or '
        'local-dir:FOLDER',
    )
    from_: str = option(
        '',
        'in place of --anchors: networks as there, a saved net, or a published checkpoint, to tune to the classes of '
        'the images (implies --recipe own)',
    )
    tune: str = option(
        '',
        'heads; stitches: heads and stitch layers; lora: also low-rank updates of linear layers; all; each: all of '
        'each network alone, then stitches between them (default: stitches with --from, else all)',
        choices=('', *TUNED),
    )
    lora_rank: int = option(8, 'rank of the updates of linear layers (with --tune lora)', least=1)
    plugin: list[str] = option([], 'Python files that register networks and adapters', free=True)
    pretrained: bool = option(True, 'load weights (NAME=FILE always does)')
    num_classes: int | None = option(None, 'classes (default: those of the weights)')
    img_size: int | None = option(None, 'height and width of the images in pixels (default: those of the weights)')
    window: int = option(2, 'width of the sliding window over equally deep stages')
    step: int = option(1, 'advance of the sliding window')
    nearest: bool = option(True, 'stitch only anchors next to each other in cost')
    direction: str = option('fast_to_slow', 'fast_to_slow, slow_to_fast or two_way')
    stage_ends: bool = option(False, 'also join networks where their stages end, not only within stages')
    drop_path: float | None = option(None, 'rate of stochastic depth')
    freeze_anchors: bool = option(False, 'train stitch layers only; of a reassembled network seams, head, new stem')
    freeze_bn: bool = option(False, 'keep the BatchNorm statistics of the anchors; scale and shift are trained')
    stitch_rank: int = option(
        0, "rank of the update trained in place of a stitch layer's weight (0: the weight)", least=0
    )

    @property
    def learned(self) -> bool:
        """Whether any anchor starts from learned weights."""
        if self.from_ and is_whole_net(self.from_):
            return True
        return self.pretrained or any(has_local_weights(name) for name in split_names(self.from_ or self.anchors))

    @property
    def tuned(self) -> str:
        """What is trained."""
        return self.tune or ('stitches' if self.from_ else 'all')

    @property
    def moves_anchors(self) -> bool:
        """Whether anchors change below their heads."""
        return self.tuned in ('lora', 'all') and not self.freeze_anchors


def build_net(settings: NetSettings, data: TrainDataSettings | None = None) -> StitchableNet:
    """The net that the settings name.

    Args:
        settings: which.
        data: the training images; a net with --from is made for their classes, and they say whether images have
            several labels.
    """
    net = _built(settings, data)
    if data is not None:
        net.several_labels = bool(data.labels)
    return net


def _built(settings: NetSettings, data: TrainDataSettings | None) -> StitchableNet:
    if settings.from_:
        classes = settings.num_classes
        if classes is None and data is not None:
            classes = count_classes(data, data.train_split)
        return start_net(settings, classes)
    return create_stitchable_net(
        settings.anchors,
        pretrained=settings.pretrained,
        num_classes=settings.num_classes,
        img_size=settings.img_size,
        window=settings.window,
        step=settings.step,
        nearest=settings.nearest,
        direction=settings.direction,
        stage_ends=settings.stage_ends,
        drop_path_rate=settings.drop_path,
    )


def start_net(settings: NetSettings, classes: int | None) -> StitchableNet:
    """The net with heads for so many classes; heads that are new are marked as such.

    Args:
        settings: `from_` says where it comes from.
        classes: width of the logits; what the weights hold where None.

    Raises:
        SnnetError: nothing is there, or a setting that a saved net has decided already.
    """
    if not is_whole_net(settings.from_):
        return create_stitchable_net(
            settings.from_, pretrained=settings.pretrained, num_classes=classes, img_size=settings.img_size,
            window=settings.window, step=settings.step, nearest=settings.nearest, direction=settings.direction,
            stage_ends=settings.stage_ends, drop_path_rate=settings.drop_path,
        )  # fmt: skip
    file = os.path.isfile(settings.from_)  # of a whole net, or of a single network that has to be named
    if not file:
        _refuse_decided_settings(settings)
    try:
        net = open_net(settings.from_, classes)
        _refuse_decided_settings(settings)
        return net
    except NoWeights as error:
        if file:
            network = network_of_file(Path(settings.from_))
            if network:
                raise NoWeights(
                    f'{settings.from_} holds weights of {network}: name it, as in --from {network}={settings.from_}'
                ) from None
            raise NoWeights(
                f'name the network that the weights in {settings.from_} belong to, as NAME={settings.from_}, unless '
                f'it is a whole net ({error})'
            ) from None
        raise


def _refuse_decided_settings(settings: NetSettings) -> None:
    """Refuses settings that a whole net has decided.

    Raises:
        SnnetError: names the flag.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in _OF_THE_SPACE:
        if getattr(settings, name) != defaults[name]:
            flag = name.replace('_', '-')
            raise SnnetError(f'{settings.from_} is a whole net, which has decided that already: leave --{flag} out')


def choose_trained_weights(settings: NetSettings, net: StitchableNet, seed: int) -> None:
    """Freezes what is not trained, and starts low-rank updates, as the settings say.

    Raises:
        SnnetError: updates of linear layers were asked for, and an anchor has none.
    """
    tuned = settings.tuned
    for i in range(len(net.anchors)):
        net.anchor(i).keeps_statistics = settings.freeze_bn
        if settings.freeze_anchors or tuned != 'all':
            net.anchor(i).freeze(head=settings.freeze_anchors)
        if tuned == 'lora':
            start_updates(net.anchor(i), settings.lora_rank, seed, i)
        if tuned == 'heads':
            train_only_head(net.anchor(i))
    if tuned == 'heads':
        net.stitch_layers.requires_grad_(False)
    if settings.stitch_rank:
        widths = [min(net.layer(i).weight.shape) for i in range(len(net.stitch_layers))]
        _warn_of_rank('--stitch-rank', settings.stitch_rank, 'stitch layers', widths)
    if tuned == 'lora':
        linear = [m for anchor in net.anchors for m in anchor.modules() if isinstance(m, LowRankUpdate)]
        _warn_of_rank(
            '--lora-rank', settings.lora_rank, 'linear layers', [min(len(m.up), m.down.shape[1]) for m in linear]
        )
    for i in range(len(net.stitch_layers) if settings.stitch_rank else 0):
        net.layer(i).start_update(settings.stitch_rank, generator(seed, 'update', i))


def _warn_of_rank(flag: str, rank: int, layers: str, widths: Sequence[int]) -> None:
    """Says that layers narrower than the rank asked for get updates of a smaller one."""
    narrow = [width for width in widths if width < rank]
    if narrow:
        _log.warning(
            '%s %d is more than the width of %d of %d %s (from %d): their updates have the rank of their width',
            flag, rank, len(narrow), len(widths), layers, min(narrow),
        )  # fmt: skip


def train_only_head(anchor: Anchor) -> None:
    """Freezes all but the classifier, even in a reassembled network, whose joins are trained otherwise."""
    anchor.requires_grad_(False)
    for module in classifier_modules(anchor.model):
        module.requires_grad_(True)
