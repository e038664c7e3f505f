"""The tensors of a checkpoint that the authors of SN-Net or SN-Netv2 released, or that their code wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..anchors.weight_files import read_file, usable, without_wrappers
from ..errors import NoWeights
from .official_names import names_today

LayerKey = tuple[int, int, int]
"""Stage, pair and number of a published stitch layer."""

_ANCHOR = re.compile(r'anchors\.(\d+)\.(.+)')
_LAYER = re.compile(r'stitch_layers(?:\.(\d+))?\.(\d+)\.(\d+)\.transform\.(weight|bias)')
_UPDATE = re.compile(r'(stitch_layers\..+\.transform\.)lora_[AB]')
_TABLES = ('model', 'state_dict', 'model_ema', 'state_dict_ema')
"""Where training scripts put the weights; the trained ones before their moving average, as the papers evaluate."""


@dataclass(frozen=True)
class OfficialFile:
    """What a file holds.

    Attributes:
        path: where it is.
        state: every tensor by its published name; low-rank updates of stitch layers are merged into their weights.
        anchors: for each anchor, the published name of every tensor by its name in timm today.
        layers: for each stitch layer, the published names of its 'weight' and 'bias'.
    """

    path: Path
    state: Mapping[str, Tensor]
    anchors: list[dict[str, str]]
    layers: dict[LayerKey, dict[str, str]]

    def tensors(self, anchor: int) -> dict[str, Tensor]:
        """The tensors of an anchor by their names in timm today."""
        return {new: self.state[old] for new, old in self.anchors[anchor].items()}

    def groups(self) -> dict[tuple[int, int], list[LayerKey]]:
        """The stitch layers of each stage and pair, in order; stages count from the first that is stitched."""
        stages = sorted({stage for stage, _, _ in self.layers})
        groups: dict[tuple[int, int], list[LayerKey]] = {}
        for key in sorted(self.layers):
            groups.setdefault((stages.index(key[0]), key[1]), []).append(key)
        return groups

    def widths(self, key: LayerKey) -> tuple[int, int] | None:
        """Channels that a stitch layer takes and gives; None where it has no weight."""
        name = self.layers[key].get('weight')
        return None if name is None else (self.state[name].shape[1], self.state[name].shape[0])


def read_official(path: Path) -> OfficialFile:
    """Reads what `torch.save` wrote, or a safetensors file; nothing but tensors and plain settings is unpickled.

    Raises:
        NoWeights: the file cannot be read, or holds something else.
    """
    state = _merge_updates(path, _read(path))
    anchors: dict[int, list[str]] = {}
    layers: dict[LayerKey, dict[str, str]] = {}
    others = []
    for name in state:
        if match := _ANCHOR.fullmatch(name):
            anchors.setdefault(int(match[1]), []).append(match[2])
        elif match := _LAYER.fullmatch(name):
            key = int(match[1] or 0), int(match[2]), int(match[3])
            layers.setdefault(key, {})[match[4]] = name
        else:
            others.append(name)
    if others or not layers or sorted(anchors) != list(range(len(anchors))):
        raise NoWeights(
            f'{path} is not a checkpoint of the published implementation: it holds {len(anchors)} anchors, '
            f'{len(layers)} stitch layers and {len(others)} other tensors'
            + (f', such as {", ".join(others[:3])}' if others else '')
        )
    parts = [names_today(anchors[i]) for i in range(len(anchors))]
    named = [{new: f'anchors.{i}.{old}' for new, old in part.items()} for i, part in enumerate(parts)]
    return OfficialFile(path, state, named, layers)


def _read(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a file, by their published names."""
    if not path.is_file():
        raise NoWeights(f"there is no file '{path}'")
    found = read_file(path, 'load_official')
    if isinstance(found, dict):
        found = next((found[name] for name in _TABLES if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise NoWeights(f'{path} holds no table of tensors')
    return usable(without_wrappers({str(name): tensor for name, tensor in found.items()}), path)


def _merge_updates(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folds the low-rank updates of SN-Netv2's stitch layers into their weights: W + B A / r."""
    merged = dict(state)
    for layer in sorted({match[1] for name in state if (match := _UPDATE.fullmatch(name))}):
        names = [f'{layer}{leaf}' for leaf in ('weight', 'lora_A', 'lora_B')]
        missing = [name for name in names if name not in state]
        if missing:
            raise NoWeights(f'{path} holds a part of a low-rank update only: {missing[0]} is missing')
        weight, down, up = (state[name] for name in names)  # (E, D), (r, D), (E, r)
        rank = len(down)
        if weight.ndim != 2 or down.shape != (rank, weight.shape[1]) or up.shape != (weight.shape[0], rank):
            shapes = ', '.join(f'{name} {list(state[name].shape)}' for name in names)
            raise NoWeights(f'{path} holds a low-rank update that does not fit its weight: {shapes}')
        merged[names[0]] = weight + (up.float() @ down.float() / rank).to(weight.dtype)
        del merged[names[1]], merged[names[2]]
    return merged
