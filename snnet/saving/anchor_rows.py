"""Rows of config.json that say how an anchor is built again: by timm, or by a maker that is registered under a name."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import is_model

from ..anchors.anchor import Anchor, Source
from ..anchors.normalization import Normalization
from ..anchors.registry import as_anchor
from ..errors import SnnetError, reason_of
from ..utils.skip_random_weights import SkipRandomWeights
from ..utils.typed_json import TypedTable
from .anchor_makers import has_maker, load_maker
from .model_arguments import check_arguments

MAX_SIDE, MAX_CHANNELS, MAX_CLASSES = 4096, 256, 1_000_000
_MODEL = re.compile(r'\w+(\.[\w-]+)?', re.ASCII)


def _read_normalization(row: TypedTable, channels: int) -> Normalization | None:
    if not row.has('mean') and not row.has('std'):
        return None
    mean, std = row.numbers('mean', -1e6, 1e6, channels), row.numbers('std', 1e-6, 1e6, channels)
    return Normalization(tuple(mean), tuple(std))


@dataclass(frozen=True)
class AnchorRow:
    """How an anchor is built again.

    Attributes:
        name: of the anchor.
        model: timm's name of the network, or that of a registered maker.
        args: of `timm.create_model` or of the maker.
        input_size: channels, height and width of an image.
        official: whether stitches end as in the published implementation.
        normalization: how the network's images are normalized; None where that is unknown, also in nets saved before
            it was noted, which ran every anchor on the images of the first.
        where: what messages call the row.
    """

    name: str
    model: str
    args: dict[str, Any]
    input_size: tuple[int, int, int]
    official: bool = False
    normalization: Normalization | None = None
    where: str = 'the anchor'

    @classmethod
    def read(cls, row: TypedTable) -> AnchorRow:
        """The checked row.

        Raises:
            SnnetError: a value is missing, of the wrong type or out of range.
        """
        name, model = row.text('name', 1000), row.text('model', 200)
        if not _MODEL.fullmatch(model):
            raise row.wrong('model', 'a name of timm such as resnet18.a1_in1k')
        size = row.integers('input_size', 1, MAX_SIDE, 3)
        if len(size) != 3 or size[0] > MAX_CHANNELS:
            raise row.wrong('input_size', f'channels (at most {MAX_CHANNELS}), height and width')
        official = row.boolean('official') if row.has('official') else False
        args = dict(row.table('args').values)
        found = cls(
            name, model, args, (size[0], size[1], size[2]), official, _read_normalization(row, size[0]), row.where
        )
        if is_made_by_timm(found):  # makers check their own arguments
            check_arguments(model, row.table('args'))
        return found

    def to_values(self) -> dict[str, Any]:
        """The values of the row."""
        values = {
            'name': self.name,
            'model': self.model,
            'args': self.args,
            'input_size': list(self.input_size),
            'official': self.official,
        }
        if self.normalization is not None:
            values |= {'mean': list(self.normalization.mean), 'std': list(self.normalization.std)}
        return values

    def build(self, random: bool = True) -> Anchor:
        """The anchor, with random weights.

        Args:
            random: False leaves zeros instead, for weights that are loaded at once.

        Raises:
            SnnetError: the network is not known, or cannot be built with these arguments.
        """
        try:
            if has_maker(self.model):
                made: Anchor = load_maker(self.model)(self)
                return made
            source = Source(self.model, self.args)
            with nullcontext() if random else SkipRandomWeights():
                model = self.build_model()
            anchor = as_anchor(model, self.name, input_size=self.input_size, source=source, official=self.official)
            anchor.normalization = self.normalization
            return anchor
        except SnnetError:
            raise
        except Exception as error:  # whatever arguments that nobody tried lead to
            raise SnnetError(f'{self.where} cannot be built: {reason_of(error)}') from error

    def build_model(self) -> Any:
        """timm's network, with random weights.

        Raises:
            SnnetError: timm knows no such network.
        """
        if not is_model(self.model.partition('.')[0]):
            raise SnnetError(
                f"timm knows no network '{self.model}' (anchor {self.name}): "
                f'if it comes from a plugin, import that first (--plugin FILE)'
            )
        return timm.create_model(self.model, pretrained=False, **self.args)


def is_made_by_timm(row: AnchorRow) -> bool:
    """Whether timm builds the network of a row, rather than a registered maker."""
    return not has_maker(row.model)


def describe_anchor(anchor: Anchor) -> AnchorRow:
    """The row of an anchor.

    Raises:
        SnnetError: nothing says how to build it again.
    """
    source = anchor.recipe()
    if source is None:
        raise SnnetError(
            f'{anchor.name} cannot be saved: timm.create_model did not make it, or noted nothing (older releases). '
            f'as_anchor(..., source=Source(model, args)) says how to build it again'
        )
    try:
        args = json.loads(json.dumps(source.args))
    except TypeError as error:
        raise SnnetError(f'{anchor.name} cannot be saved: its arguments do not fit in JSON ({error})') from None
    return AnchorRow(anchor.name, source.model, args, anchor.input_size, anchor.official, anchor.normalization)
