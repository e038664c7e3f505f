"""A reassembled network: legs of a zoo's networks, seams between them, a stem and a head (DeRy, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..anchors.anchor import Anchor, Source, Stage
from ..anchors.boundary import Boundary
from ..anchors.registry import register_adapter
from ..errors import CannotStitch, SnnetError
from ..net.create import create_stitchable_net, load_folder
from ..saving.anchor_rows import MAX_CLASSES, AnchorRow, describe_anchor, register_maker
from ..stitching.stitch import Leg
from ..utils.seeds import generator
from ..utils.typed_json import TypedTable
from .joins import (
    KINDS,
    NewHead,
    NewStem,
    Seam,
    behind_seam,
    made,
)
from .leg_shapes import flow

STEMS = ('own', 'new')
HEADS = ('auto', 'own', 'new')
REASSEMBLED = 'reassembled'
"""Stands where timm's name of a network would in config.json."""


def reassemble(
    legs: str | Sequence[Leg],
    zoo: Mapping[str, Anchor],
    *,
    stem: str = 'own',
    head: str = 'auto',
    seams: str = 'published',
    resample: bool = True,
    num_classes: int | None = None,
    seed: int = 0,
) -> Reassembled:
    """Builds a network from legs of a zoo; it holds copies of what the legs need, the zoo stays as it is.

    Seams, new stem and new head start with torch's usual random weights; `initialize_seams` fits the seams.

    Args:
        legs: such as 'regnety_160[0:2] > regnety_016[23:27]': positions are those of the networks' lines. Where the
            first leg starts at 0 or is open, the stem of its network comes before it; where it starts further down, a
            seam leads from that stem to its start. The last leg may be open.
        zoo: networks by the names that the legs use, all for one image size.
        stem: 'own' (of the network of the first leg) or 'new' (the paper's: convolution and max pooling).
        head: 'own' (of the network of the last leg: it must run to its end, the number of classes must fit, and the
            prefix tokens that the head looks at must be there), 'new' (pooling and a linear layer), or 'auto': its own
            where that is possible.
        seams: 'published' or 'plain', see `Seam`.
        resample: give every leg the grid that it has in its own network: average pooling makes a grid smaller, bilinear
            interpolation larger. Otherwise it runs on the grid that comes (as the published networks do), which blocks
            that are tied to their grid refuse.
        num_classes: width of the logits; that of the last leg's network by default.
        seed: of the random weights.

    Raises:
        SnnetError: a leg, an option or a class count that is out of range.
        CannotStitch: networks of different image sizes, a leg that does not run on what comes, or an own head that
            does not fit.
    """
    for what, value, allowed in (('stem', stem, STEMS), ('head', head, HEADS), ('seams', seams, KINDS)):
        if value not in allowed:
            raise SnnetError(f"{what} is one of {', '.join(allowed)}, not '{value}'")
    if num_classes is not None and num_classes < 1:
        raise SnnetError(f'a network needs at least one class, num_classes={num_classes} was asked for')
    plan = _plan(legs, zoo, stem)
    last = zoo[plan[-1].anchor]
    own = _no_own_head(plan, zoo, num_classes) if head != 'new' else 'a new one was asked for'
    if head == 'own' and own:
        raise CannotStitch(f'{plan[-1]} cannot end in the head of its network: {own}')
    open_end = plan[-1].stop if plan[-1].stop is not None else len(last.line())
    plan[-1] = replace(plan[-1], stop=open_end if own else None)
    parts = [zoo[leg.anchor].cut(leg.start, leg.stop) for leg in plan]
    options = {
        'stem': stem,
        'head': 'new' if own else 'own',
        'seams': seams,
        'resample': resample,
        'num_classes': num_classes or last.num_classes,
    }
    return Reassembled(plan, parts, options, seed)


class Reassembled(nn.Module):
    """Legs with seams between them, as `reassemble` makes them.

    Parameters are named `legs.{i}.model.*` as in the networks that they come from, `seams.{i}.*`, `stem.*` and
    `head.*` (where these are new).

    Args:
        plan: the legs; the first is open where the stem is its network's own, the last where the head is.
        parts: one anchor a leg, cut to it.
        options: `stem`, `head`, `seams`, `resample` and `num_classes` of `reassemble`.
        seed: of the random weights.

    Attributes:
        boundaries: what flows at each position of the whole line (see `line`).
    """

    def __init__(self, plan: Sequence[Leg], parts: Sequence[Anchor], options: Mapping[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.plan, self.options = tuple(plan), dict(options)
        self.num_classes, self.input_size = int(options['num_classes']), parts[0].input_size
        self.legs = nn.ModuleList(parts)
        self.seams = nn.ModuleList()
        self.stem: NewStem | None = None
        self.head: NewHead | None = None
        self.frozen = False
        like, resample = next(parts[0].parameters()), bool(options['resample'])
        first, start = parts[0].boundaries, plan[0].start
        if start is None:
            given = first[0]
        else:
            make = partial(NewStem, first[start], self.input_size, resample)
            self.stem = made(make, like, generator(seed, 'stem'))
            given = self.stem.end
        places: list[Boundary] = []
        for i, (leg, part) in enumerate(zip(plan, parts, strict=True)):
            if i:
                assert leg.start is not None
                front, given = given, behind_seam(given, part.boundaries[leg.start], resample)
                seam = made(partial(Seam, front, given, options['seams']), like, generator(seed, 'seam', i - 1))
                self.seams.append(seam)
            places += [given, *(through := flow(leg, part, given))]
            given = through[-1] if through else given
        self.boundaries = tuple(places)
        if plan[-1].stop is not None:
            self.head = made(partial(NewHead, given, self.num_classes), like, generator(seed, 'head'))

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared, in timm's words: as for the network of the first leg."""
        config = dict(getattr(self.part(0).model, 'pretrained_cfg', None) or {})
        return {**config, 'input_size': self.input_size, 'num_classes': self.num_classes, 'architecture': 'reassembled'}

    def part(self, leg: int) -> Anchor:
        """What a leg runs: its network, cut to it."""
        found = self.legs[leg]
        assert isinstance(found, Anchor)
        return found

    def seam(self, index: int) -> Seam:
        """The seam behind a leg."""
        found = self.seams[index]
        assert isinstance(found, Seam)
        return found

    def line(self) -> list[nn.Module]:
        """Blocks, entries and seams in the order they run, looked up now."""
        modules: list[nn.Module] = []
        for i, leg in enumerate(self.plan):
            modules += [self.seams[i - 1]] if i else []
            modules += self.part(i).line()[leg.start : leg.stop]
        return modules

    def run_to_seam(self, x: Tensor, seam: int) -> Tensor:
        """Image (N, C, H, W) to what reaches a seam."""
        line = self.line()
        x = self.run_stem(x)
        for module in line[: line.index(self.seams[seam])]:
            x = module(x)
        return x

    def run_stem(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to the features at position 0."""
        return self.part(0).stem(x) if self.stem is None else self.stem(x)

    def run_head(self, x: Tensor) -> Tensor:
        """Features at the last position to logits (N, classes)."""
        if self.head is not None:
            return self.head(x)
        part = self.part(len(self.plan) - 1)
        return part.run(x, len(part.line()), None)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to logits (N, classes)."""
        x = self.run_stem(x)
        for module in self.line():
            x = module(x)
        return self.run_head(x)

    def freeze_blocks(self, frozen: bool = True) -> Reassembled:
        """Frozen-tuning: only seams, head and a new stem train; the rest stays in eval mode, also after `train()`."""
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
        self.head = made(partial(NewHead, self.boundaries[-1], num_classes), like, generator(0, 'head'))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that do not decay, as the networks of the legs list them."""
        return {
            f'legs.{i}.model.{name}'
            for i in range(len(self.plan))
            for name in getattr(self.part(i).model, 'no_weight_decay', set)()
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors: a stitchable net whose one anchor and one stitch this network is.

        So `eval_stitches.py FOLDER`, `train.py --anchors FOLDER` and `StitchableNet.from_pretrained` read it, too.

        Raises:
            SnnetError: a network of the zoo that `timm.create_model` could not make again, or weights that are not
                finite.
        """
        create_stitchable_net([ReassembledAnchor(self)], pretrained=True).save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Reassembled:
        """The network that was saved in a folder, in eval mode.

        Raises:
            SnnetError: the folder holds no reassembled network, or it cannot be read.
        """
        model = load_folder(str(folder)).model
        if not isinstance(model, cls):
            raise SnnetError(f'{folder} holds a {type(model).__name__}, no reassembled network')
        return model

    def _own_head(self) -> dict[str, nn.Parameter]:
        """Parameters of the last network's own head, by their names there; none where the head is new."""
        if self.head is not None:
            return {}
        part = self.part(len(self.plan) - 1)
        names = part.parameter_names(len(part.line()), None)
        return {name: p for name, p in part.model.named_parameters() if name in names}

    def __str__(self) -> str:
        return ' > '.join(map(str, self.plan))

    def extra_repr(self) -> str:
        """The legs, in print."""
        return str(self)


class ReassembledAnchor(Anchor):
    """A reassembled network as a line of all its blocks and seams.

    Args:
        model: the network.
        name: what messages and stitches call it.
    """

    def __init__(self, model: Reassembled, name: str = 'reassembled', *args: Any, **kwargs: Any) -> None:
        super().__init__(model, name, *(args or (model.input_size,)), **kwargs)

    def stem(self, x: Tensor) -> Tensor:
        """The new stem, or that of the first leg's network."""
        return self.model.run_stem(x)

    def recipe(self) -> Source:
        """The arguments of `reassemble`, with a row of config.json in place of each network of the zoo."""
        legs = enumerate(self.model.plan)
        zoo = {leg.anchor: {**describe_anchor(self.model.part(i)).to_values(), 'name': leg.anchor} for i, leg in legs}
        return Source(REASSEMBLED, {'legs': str(self.model), 'zoo': list(zoo.values()), **self.model.options})

    def stages(self) -> list[Stage]:
        """Runs of one grid, width and layout; a seam or a downsampling that opens one is its entry."""
        line, places = self.model.line(), self.model.boundaries
        entries = {id(stage.entry) for part in self.model.legs for stage in part.stages() if stage.entry is not None}
        entries |= {id(seam) for seam in self.model.seams}
        runs: list[list[nn.Module]] = []
        for position, module in enumerate(line):
            if position == 0 or places[position + 1] != places[position]:
                runs.append([])
            runs[-1].append(module)
        return [Stage(run[1:], run[0]) if len(run) > 1 and id(run[0]) in entries else Stage(run) for run in runs]

    def head(self, x: Tensor) -> Tensor:
        """The new head, or that of the last leg's network."""
        return self.model.run_head(x)

    def clear_caches(self) -> None:
        """Those of the legs."""
        for part in self.model.legs:
            part.clear_caches()

    def freeze(self) -> None:
        """Frozen-tuning: only seams, head and a new stem train."""
        self.model.freeze_blocks()

    def layout_at(self, position: int) -> tuple[str, int]:
        """Layout and prefix at a position, which change along the line."""
        return self.model.boundaries[position].layout, self.model.boundaries[position].prefix

    def is_grid_bound(self, position: int, module: nn.Module) -> bool:
        """As in the network that the module comes from."""
        first = 0
        for i, leg in enumerate(self.model.plan):
            part = self.model.part(i)
            start, stop, _ = slice(leg.start, leg.stop).indices(len(part.line()))
            first += i > 0  # the seam
            if first <= position < first + stop - start:
                return part.is_grid_bound(start + position - first, module)
            first += stop - start
        return False


def _plan(legs: str | Sequence[Leg], zoo: Mapping[str, Anchor], stem: str) -> list[Leg]:
    """The legs, checked; the first is open where the stem is its network's own, alone where the leg starts later."""
    if isinstance(legs, str):
        legs = [Leg.parse(part) for part in legs.split('>')]
    if not legs:
        raise SnnetError('a reassembled network has at least one leg, none given')
    plan = list(legs)
    sizes = {}
    for i, leg in enumerate(plan):
        if leg.anchor not in zoo:
            raise CannotStitch(f"leg {leg}: there is no network '{leg.anchor}' in the zoo, only {', '.join(zoo)}")
        sizes[leg.anchor] = 'x'.join(map(str, zoo[leg.anchor].input_size))
        last = len(zoo[leg.anchor].line())
        start, stop = leg.start or 0, last if leg.stop is None else leg.stop
        alone = i == 0 and leg.start is None and stop == 0 and stem == 'own' and len(plan) > 1  # a stem
        if not (0 <= start < stop <= last or alone):
            raise CannotStitch(f'leg {leg}: positions of {leg.anchor} run from 0 to {last}, and a leg runs a module')
        if (i and leg.start is None) or (i < len(plan) - 1 and leg.stop is None):
            raise CannotStitch(f'leg {leg} is open, but only the first may begin and the last may end that way')
    if len(set(sizes.values())) > 1:
        listed = ', '.join(f'{name} {size}' for name, size in sizes.items())
        raise CannotStitch(f'the networks take images of different sizes: {listed}')
    first = plan[0]
    if stem == 'new':
        plan[0] = replace(first, start=first.start or 0)
    elif first.start:
        plan.insert(0, Leg(first.anchor, None, 0))
    else:
        plan[0] = replace(first, start=None)
    return plan


def _no_own_head(plan: Sequence[Leg], zoo: Mapping[str, Anchor], num_classes: int | None) -> str:
    """Why the last leg cannot end in the head of its network; empty where it can."""
    last = zoo[plan[-1].anchor]
    if plan[-1].stop not in (None, len(last.line())):
        return f'the leg does not run to position {len(last.line())}, the last'
    if num_classes not in (None, last.num_classes):
        return f'it knows {last.num_classes} classes, not {num_classes}'
    prefix = None
    for leg in plan:
        own, stop = zoo[leg.anchor].boundaries, -1 if leg.stop is None else leg.stop
        through = leg.start is None or prefix == own[leg.start].prefix
        prefix = own[stop].prefix if through else 0
    if prefix != last.boundaries[-1].prefix:
        return f'the {last.boundaries[-1].prefix} prefix tokens that it looks at are not there'
    return ''


def _rebuild(row: AnchorRow) -> Anchor:
    """The anchor of a row of config.json, with random weights."""
    table = TypedTable(row.args, f'{row.where}: args')
    table.only(('legs', 'zoo', 'stem', 'head', 'seams', 'resample', 'num_classes'))
    zoo = {member.name: member.build() for member in map(AnchorRow.read, table.rows('zoo', 100))}
    options: dict[str, Any] = {name: table.text(name) for name in ('stem', 'head', 'seams') if table.has(name)}
    if table.has('resample'):
        options['resample'] = table.boolean('resample')
    if table.has('num_classes'):
        options['num_classes'] = table.integer('num_classes', 1, MAX_CLASSES)
    return ReassembledAnchor(reassemble(table.text('legs', 10_000), zoo, **options), row.name)


register_adapter(Reassembled, ReassembledAnchor)
register_maker(REASSEMBLED, _rebuild)
