"""Names of parameters in timm 0.6.12, for which the published checkpoints were written, and what timm calls them today.

ViT and ResNet kept theirs, but for DeiT-III's layer scale. timm's own filters of old weights do not know LeViT's names,
and resize without a word what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_DROPPED = re.compile(
    r'(^|\.)(attn_mask|relative_position_index|attention_bias_idxs)$'  # tables that the network makes itself
    r'|\.aux_bn\.'  # BatchNorms of split augmented batches, which only training runs
)
_UNIT = re.compile(r'blocks\.(\d+(?:\.\d+)*)\.((?:m|kv|q|proj)\..+|attention_biases)')
"""A LeViT of old: one flat row of attentions (`m.qkv`, `m.proj`), MLPs (`m.0`, `m.2`) and subsampling attentions."""
_LEAVES = ((r'\bc\.', 'linear.'), (r'\bl\.', 'linear.'), (r'^proj\.1\.', 'proj.ln.'), (r'^q\.1\.', 'q.ln.'))


def names_today(names: Iterable[str]) -> dict[str, str]:
    """The given name of every parameter by its name in timm today, without the tables that networks make themselves.

    Args:
        names: as in timm 0.6.12, or as today.
    """
    names = [name for name in names if not _DROPPED.search(name)]
    if any(_UNIT.fullmatch(name) for name in names):
        return dict(_levit(names))
    if any(name.startswith('layers.0.blocks.') for name in names):
        return dict(_swin(names))
    # DeiT-III kept the scales of its layers as parameters of the block
    return {re.sub(r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma', name): name for name in names}


def _swin(names: list[str]) -> Iterator[tuple[str, str]]:
    """Patch merging closed a stage and opens the next one today."""
    closing = any(name.startswith('layers.0.downsample.') for name in names)
    for name in names:
        new = re.sub(r'^head\.(weight|bias)$', r'head.fc.\1', name)
        if closing:
            new = re.sub(r'^layers\.(\d+)\.downsample\.', lambda m: f'layers.{int(m[1]) + 1}.downsample.', new)
        yield new, name


def _levit(names: list[str]) -> Iterator[tuple[str, str]]:
    """The row of units becomes stages of blocks, each an attention and an MLP."""
    units: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _UNIT.fullmatch(name):
            units.setdefault(match[1], []).append((match[2].removeprefix('m.'), name))
        else:
            new = re.sub(r'^patch_embed\.(\d+)\.', lambda m: f'stem.conv{int(m[1]) // 2 + 1}.', name)
            yield _renamed(new), name
    stage, block, owner = 0, 0, ''
    for number in sorted(units, key=lambda unit: [int(part) for part in unit.split('.')]):
        leaves = [leaf for leaf, _ in units[number]]
        if any(leaf.startswith('kv.') for leaf in leaves):
            stage, block = stage + 1, 0
            owner, part = f'stages.{stage}.downsample', 'attn_downsample'
        elif any(leaf.startswith('qkv.') for leaf in leaves):
            owner, part, block = f'stages.{stage}.blocks.{block}', 'attn', block + 1
        else:
            part = 'mlp'
        for leaf, name in units[number]:
            new = re.sub(r'^([02])\.', lambda m: f'ln{int(m[1]) // 2 + 1}.', leaf)
            yield f'{owner}.{part}.{_renamed(new)}', name


def _renamed(name: str) -> str:
    for pattern, new in _LEAVES:
        name = re.sub(pattern, new, name)
    return name
