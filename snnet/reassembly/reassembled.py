"""The reassembled network: legs of a zoo's networks, joins between them, a stem and a head (DeRy, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..anchors.registry import as_anchor
from ..errors import SnnetError
from ..net.create import create_stitchable_net, load_folder
from ..stitching.stitch import Leg
from ..utils.seeds import generator
from .join_layer import JoinLayer, boundary_behind_join
from .leg_boundaries import leg_boundaries
from .make_part import make_part
from .new_head import NewHead
from .new_stem import NewStem


class Reassembled(nn.Module):
    """Legs with joins between them, as `reassemble` makes them.

    Parameters are named `legs.{i}.model.*` as in the networks that they come from, `seams.{i}.*` for the joins, and
    `stem.*` and `head.*` if these are new.

    Args:
        plan: the legs; the first is open if the stem is its network's own, the last if the head is.
        parts: one anchor per leg, cut to it.
        options: `stem`, `head`, `joins`, `resample` and `num_classes` of `reassemble`.
        seed: of the random weights.
        strides: of the joins; all 1 by default.

    Attributes:
        boundaries: what flows at each position of the whole line (see `line`).
    """

    def __init__(
        self,
        plan: Sequence[Leg],
        parts: Sequence[Anchor],
        options: Mapping[str, Any],
        seed: int = 0,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.options = tuple(plan), dict(options)
        self.strides = (1,) * (len(self.plan) - 1) if strides is None else tuple(strides)
        self.num_classes, self.input_size = int(options['num_classes']), parts[0].input_size
        self.legs = nn.ModuleList(parts)
        self.seams = nn.ModuleList()  # the joins, under the name that saved networks and checkpoints hold
        self.stem: NewStem | None = None
        self.head: NewHead | None = None
        self.frozen = False
        like, resample = next(parts[0].parameters()), bool(options['resample'])
        first, start = parts[0].boundaries, plan[0].start
        if start is None:
            given = first[0]
        else:
            make = partial(NewStem, first[start], self.input_size, resample)
            self.stem = make_part(make, like, generator(seed, 'stem'))
            given = self.stem.end
        boundaries: list[Boundary] = []
        for i, (leg, part) in enumerate(zip(plan, parts, strict=True)):
            if i:
                assert leg.start is not None
                stride = self.strides[i - 1]
                front, given = given, boundary_behind_join(given, part.boundaries[leg.start], resample, stride)
                new_join = partial(JoinLayer, front, given, options['joins'], stride)
                self.seams.append(make_part(new_join, like, generator(seed, 'seam', i - 1)))
            behind = leg_boundaries(leg, part, given)
            boundaries += [given, *behind]
            given = boundaries[-1]
        self.boundaries = tuple(boundaries)
        if plan[-1].stop is not None:
            self.head = make_part(partial(NewHead, given, self.num_classes), like, generator(seed, 'head'))

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared, in timm's words: as for the network of the first leg."""
        config = dict(getattr(self.part(0).model, 'pretrained_cfg', None) or {})
        first = config.get('first_conv') or ()
        first = [f'legs.0.model.{name}' for name in ([first] if isinstance(first, str) else first)]
        own = {'input_size': self.input_size, 'num_classes': self.num_classes, 'architecture': 'reassembled'}
        return {**config, **own, 'first_conv': tuple(first) if self.stem is None else 'stem.conv'}

    @property
    def joins(self) -> list[JoinLayer]:
        """The joins, in order; join i leads from leg i to leg i + 1."""
        return [self.join(i) for i in range(len(self.seams))]

    def part(self, leg: int) -> Anchor:
        """What a leg runs: its network, cut to it."""
        found = self.legs[leg]
        assert isinstance(found, Anchor)
        return found

    def join(self, index: int) -> JoinLayer:
        """The join behind a leg."""
        found = self.seams[index]
        assert isinstance(found, JoinLayer)
        return found

    def line(self) -> list[nn.Module]:
        """Blocks, entries and joins in the order they run, looked up now."""
        modules: list[nn.Module] = []
        for i, leg in enumerate(self.plan):
            modules += [self.seams[i - 1]] if i else []
            modules += self.part(i).line()[leg.start : leg.stop]
        return modules

    def run_to_join(self, x: Tensor, join: int) -> Tensor:
        """Image (N, C, H, W) to what reaches a join."""
        line = self.line()
        x = self.run_stem(x)
        for module in line[: line.index(self.seams[join])]:
            x = module(x)
        return x

    def run_stem(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to the features at position 0."""
        features: Tensor = self.part(0).stem(x) if self.stem is None else self.stem(x)
        return features

    def run_head(self, x: Tensor) -> Tensor:
        """Features at the last position to logits (N, classes)."""
        if self.head is not None:
            logits: Tensor = self.head(x)
            return logits
        part = self.part(len(self.plan) - 1)
        return part.run(x, len(part.line()), None)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to logits (N, classes)."""
        x = self.run_stem(x)
        for module in self.line():
            x = module(x)
        return self.run_head(x)

    def freeze_blocks(self, frozen: bool = True) -> Reassembled:
        """Frozen-tuning: only joins, head and a new stem train; the rest stays in eval mode, even after `train()`."""
        self.frozen = frozen
        self.legs.requires_grad_(not frozen)
        for parameter in self._own_head().values():
            parameter.requires_grad_(True)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Reassembled:
        """Train or eval mode; frozen blocks stay in eval mode."""
        super().train(mode)
        if self.frozen:
            self.legs.eval()
            for name in self._own_head():
                self.part(len(self.plan) - 1).model.get_submodule(name.rpartition('.')[0]).train(mode)
        return self

    def reset_classifier(self, num_classes: int) -> None:
        """Gives the network a new head for another number of classes, as timm's networks do."""
        self.num_classes = self.options['num_classes'] = num_classes
        if self.head is None:
            leg, part = self.plan[-1], self.part(len(self.plan) - 1)
            stop = len(part.line())
            self.plan = (*self.plan[:-1], replace(leg, stop=stop))
            self.options['head'] = 'new'
            self.legs[-1] = part.cut(leg.start, stop)
        like = next(self.parameters())
        self.head = make_part(partial(NewHead, self.boundaries[-1], num_classes), like, generator(0, 'head'))

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The classifier of the new head, or that of the last leg's network, as timm's networks give it."""
        if self.head is not None:
            return self.head.fc
        last = self.part(len(self.plan) - 1).model
        found: nn.Module | tuple[nn.Module, ...] = getattr(last, 'get_classifier', lambda: ())()
        return found

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that do not decay, as the networks of the legs list them."""
        return {
            f'legs.{i}.model.{name}'
            for i in range(len(self.plan))
            for name in getattr(self.part(i).model, 'no_weight_decay', set)()
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors: a stitchable net whose one anchor and one stitch is this network.

        `eval_stitches.py FOLDER`, `train.py --from FOLDER` and `StitchableNet.from_pretrained` read it as well.

        Raises:
            SnnetError: a network of the zoo that `timm.create_model` could not make again, or weights that are not
                finite.
        """
        anchor = as_anchor(self, 'reassembled')
        create_stitchable_net([anchor], pretrained=True).save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Reassembled:
        """The network that was saved in a folder, in eval mode.

        Raises:
            SnnetError: the folder holds no reassembled network, or it cannot be read.
        """
        model = load_folder(str(folder)).model
        if not isinstance(model, cls):
            raise SnnetError(f'{folder} holds a {type(model).__name__}, not a reassembled network')
        return model

    def _own_head(self) -> dict[str, nn.Parameter]:
        """Parameters of the last network's own head, by their names there; none if the head is new."""
        if self.head is not None:
            return {}
        part = self.part(len(self.plan) - 1)
        names = part.parameter_names(len(part.line()), None)
        return {name: p for name, p in part.model.named_parameters() if name in names}

    def __str__(self) -> str:
        """The legs as `reassemble` reads them: 'a[:2] > b[3:9] >2> c[4:]', where 2 is the stride of a join."""
        signs = (' > ' if stride == 1 else f' >{stride}> ' for stride in self.strides)
        return str(self.plan[0]) + ''.join(f'{sign}{leg}' for sign, leg in zip(signs, self.plan[1:], strict=True))

    def extra_repr(self) -> str:
        """The legs."""
        return str(self)
