"""Names of networks: the papers' checkpoints, any timm name, or NAME=FILE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.models import is_model, list_models

from ..errors import NoWeights, SnnetError, did_you_mean

ALIASES = {
    **{f'deit_{size}': f'deit_{size}_patch16_224.fb_in1k' for size in ('tiny', 'small', 'base')},
    **{f'swin_{size}': f'swin_{size}_patch4_window7_224.ms_in22k_ft_in1k' for size in ('tiny', 'small', 'base')},
    'resnet18': 'resnet18.tv_in1k',
    'resnet50': 'resnet50.a1_in1k',
    **{f'levit_{width}': f'levit_{width}.fb_dist_in1k' for width in ('128s', '128', '192', '256', '384')},
    'regnety_160': 'regnety_160.deit_in1k',
    **{f'vit_{size}': f'vit_{size}_patch16_224.augreg_in21k_ft_in1k' for size in ('tiny', 'small', 'base')},
}
"""The checkpoints that the papers used, where timm's own defaults differ, and short names."""


@dataclass(frozen=True)
class NamedNetwork:
    """What a user asked for with NAME or NAME=FILE.

    Attributes:
        name: as given; what stitches and messages call the network.
        model: timm's name for it, with the tag of the weights where one was chosen.
        file: local weights, or None for timm's pretrained ones.
    """

    name: str
    model: str
    file: Path | None = None


def resolve(text: str) -> NamedNetwork:
    """Looks up an alias, a timm name with or without tag, or NAME=FILE.

    Raises:
        SnnetError: no such network or tag.
        NoWeights: the file is not there.
    """
    name, equals, file = (part.strip() for part in text.partition('='))
    model = ALIASES.get(name, name)
    architecture, _, tag = model.partition('.')
    if not is_model(architecture):
        known = [*ALIASES, *list_models()]
        raise SnnetError(
            f"unknown network '{name}'{did_you_mean(name, known) or ': timm.list_models() lists the names'}"
        )
    tags = [full.partition('.')[2] for full in list_models(architecture, pretrained=True)]
    if tag and tag not in tags:
        raise SnnetError(f"{architecture} has no weights tagged '{tag}', only {', '.join(tags)}")
    if equals and not Path(file).is_file():
        raise NoWeights(f"{name}: there is no file '{file}'")
    return NamedNetwork(name, model, Path(file) if equals else None)


def is_folder(text: str) -> bool:
    """Whether a user means a folder rather than a network that timm has under that name."""
    name = ALIASES.get(text, text).partition('.')[0]
    return '=' not in text and not is_model(name) and Path(text).is_dir()
