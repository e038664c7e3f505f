"""Names of networks: the papers' checkpoints, any timm name, NAME=FILE, a folder, or a repository on the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.models import is_model, list_models

from ..errors import NoWeights, SnnetError, did_you_mean
from ..utils.typed_json import read_json

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


LOCAL = 'local-dir:'
HUB = 'hf-hub:'
_SOURCES = (LOCAL, HUB, 'hf_hub:')
"""timm's prefixes of networks outside its registry; the last is an old spelling."""


@dataclass(frozen=True)
class NamedNetwork:
    """What a user asked for.

    Attributes:
        name: as given; what stitches and messages call the network.
        model: the name that `timm.create_model` takes, with the tag of the weights where one was chosen.
        file: local weights, or None for those that belong to `model`.
    """

    name: str
    model: str
    file: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether the weights lie on this machine, so that they are always loaded."""
        return self.file is not None or self.model.startswith(LOCAL)


def split_names(names: str | Sequence[str]) -> list[str]:
    """The names in a list, or in a text that separates them by commas; paths that exist may contain commas.

    Args:
        names: such as 'deit_tiny,deit_small=weights.pth', or a list of such names.
    """
    if not isinstance(names, str):
        return [str(name) for name in names]
    parts = names.split(',')
    found: list[str] = []
    while parts:
        length = _parts_of_first(parts)
        found.append(','.join(parts[:length]).strip())
        parts = parts[length:]
    return [name for name in found if name]


def _parts_of_first(parts: Sequence[str]) -> int:
    """How many of the parts between commas form the first name: one, unless it goes on to a path that exists."""
    first = parts[0].strip()
    if _is_path(first) or (_is_registered(first) and '=' not in first):
        return 1
    for count in range(2, min(len(parts), _COMMAS_IN_PATH) + 1):
        if _is_path(','.join(parts[:count]).strip()):
            return count
    return 1


def resolve(text: str) -> NamedNetwork:
    """Looks up an alias, a timm name with or without tag, NAME=FILE, hf-hub:OWNER/NAME, local-dir:FOLDER or FOLDER.

    Raises:
        SnnetError: no such network or tag.
        NoWeights: the file or folder is missing.
    """
    text = text.strip()
    if text.startswith(_SOURCES):
        return _from_elsewhere(text)
    if is_timm_folder(text):
        return NamedNetwork(text, LOCAL + text)
    name, equals, file = (part.strip() for part in text.partition('='))
    file = os.path.expanduser(file)
    if equals and not (name and file):
        raise SnnetError(f"'{text}' is not NAME=FILE: give the name of a network of timm, and a file of its weights")
    model = ALIASES.get(name, name)
    architecture, dot, tag = model.partition('.')
    if not is_model(architecture):
        raise SnnetError(_why_unknown(name))
    tags = [full.partition('.')[2] for full in list_models(architecture, pretrained=True)]
    if dot and tag not in tags:
        raise SnnetError(f"{architecture} has no weights tagged '{tag}', only {', '.join(tags)}")
    if equals and os.path.isdir(file):
        raise NoWeights(f"{name}: '{file}' is a folder, but {name}=FILE needs a file of weights")
    if equals and not os.path.isfile(file):
        raise NoWeights(f"{name}: there is no file '{file}'{_COMMAS if _looks_cut(file) else ''}")
    return NamedNetwork(name, model, Path(file) if equals else None)


def weights_file(text: str) -> Path | None:
    """The local file with the weights that a name stands for, whether or not it exists; None for others' weights."""
    text = text.strip()
    folder = text.removeprefix(LOCAL)
    if text.startswith(LOCAL) or is_timm_folder(folder):
        files = [Path(folder) / name for name in ('model.safetensors', 'pytorch_model.bin')]
        return next((file for file in files if os.path.isfile(file)), files[0])
    _, equals, file = (part.strip() for part in text.partition('='))
    return Path(file).expanduser() if equals and not text.startswith(_SOURCES) else None


def without_file(text: str) -> str:
    """The network's name in NAME=FILE; other names as they are."""
    text = text.strip()
    return text if text.startswith(_SOURCES) or is_timm_folder(text) else text.partition('=')[0].strip()


def is_net_folder(text: str) -> bool:
    """Whether a user means a folder of a saved net, rather than a network of timm or weights of one."""
    known = _is_registered(text) or text.startswith(_SOURCES)
    return not known and os.path.isdir(text) and not is_timm_folder(text)


def is_whole_net(text: str) -> bool:
    """Whether a user means one whole net: its folder, a file that holds one, or a repository on the Hub."""
    names = split_names(text)
    if len(names) != 1:
        return False
    if is_net_folder(names[0]) or os.path.isfile(names[0]):
        return True
    if '=' in names[0] or names[0].count('/') != 1 or ':' in names[0]:
        return False
    try:
        resolve(names[0])
    except SnnetError:
        return True  # OWNER/NAME on the Hub; what is neither is named in the error of fetching it
    return False


def has_local_weights(text: str) -> bool:
    """Whether a name stands for weights on this machine, which are loaded whether or not others are pretrained."""
    return weights_file(text) is not None or is_net_folder(text)


def is_timm_folder(text: str) -> bool:
    """Whether a user means a folder of a network as timm saves one; names that timm has registered come first."""
    return not _is_registered(text) and _holds_timm_config(Path(text))


def _holds_timm_config(folder: Path) -> bool:
    """Whether a folder has the config.json of a network of timm, which names its architecture."""
    try:
        config = read_json(folder / 'config.json')
    except (OSError, ValueError):  # SnnetError is a ValueError
        return False
    return isinstance(config, dict) and 'architecture' in config and config.get('library') != 'snnet'


def _is_registered(text: str) -> bool:
    """Whether a text is the name of a network of timm, an alias of one, or NAME=FILE of one."""
    name = text.partition('=')[0].strip()
    return bool(is_model(ALIASES.get(name, name).partition('.')[0]))


_COMMAS_IN_PATH = 16
_COMMAS = ' (commas separate networks: a path that contains one must exist)'


def _looks_cut(file: str) -> bool:
    """Whether a path may have lost its end at a comma."""
    return not Path(file).suffix or '=' in file


def _is_path(name: str) -> bool:
    """Whether a name ends in a file or folder that exists."""
    file = name.partition('=')[2].strip()
    folder = name.removeprefix(LOCAL)
    return bool(file and os.path.isfile(os.path.expanduser(file))) or bool(folder and os.path.isdir(folder))


def _from_elsewhere(text: str) -> NamedNetwork:
    """A network of timm's sources: a folder on this machine, or a repository on the Hugging Face Hub."""
    folder = text.removeprefix(LOCAL)
    if text.startswith(LOCAL) and not _holds_timm_config(Path(folder)):
        reason = 'holds no network that timm saved' if os.path.isdir(folder) else 'does not exist'
        raise NoWeights(f"{text}: the folder '{folder}' {reason} (timm.models.save_for_hf writes such folders)")
    return NamedNetwork(text, text)


def _why_unknown(name: str) -> str:
    hint = did_you_mean(name.lower(), [*ALIASES, *list_models()])
    if os.path.isfile(name):
        hint = f': it is a file, so name the network that it belongs to, NAME={name}'
    elif not hint and '/' in name:
        hint = f' (a repository on the Hugging Face Hub reads {HUB}{name}, and there is no such folder)'
    return f"unknown network '{name}'{hint or ': timm.list_models() lists the names'}"
