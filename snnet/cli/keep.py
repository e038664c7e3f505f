"""`snnet keep FOLDER --output SMALLER`: writes a net with only the stitches that are worth having."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..budget.frontier import area, gains_over_mixing
from ..budget.record import Record
from ..config.sections import option
from ..errors import SnnetError
from .new_folder import new_folder

if TYPE_CHECKING:
    from ..net.stitchable_net import StitchableNet


@dataclass
class KeepSettings:
    """Settings of `snnet keep`."""

    folder: str = option('', 'folder of a saved net, or its id on the Hub')
    output: str = option('', 'new folder for the smaller net')
    stitches: str = option('', "ids to keep, such as '3-9,24' (default: those above mixing their anchors)")
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: KeepSettings) -> None:
    """Writes the smaller net, and says what the other stitches were worth.

    Raises:
        SnnetError: no net, an output that is there already, or no accuracies to choose by.
        OSError: the folder cannot be written.
    """
    from ..net.keep_stitches import keep_stitches  # here, so that --help does not load torch
    from ..net.stitchable_net import StitchableNet
    from ..stitching.stitch import parse_ids
    from ..utils.plugins import import_plugins

    import_plugins(settings.plugin)
    net = StitchableNet.from_pretrained(settings.folder)
    output = new_folder(settings.output)
    chosen = parse_ids(settings.stitches, len(net.stitches)) if settings.stitches else worth_having(net.records)
    smaller = keep_stitches(net, chosen)
    smaller.save_pretrained(output)
    for what, found in (('before', net), ('after', smaller)):
        print(f'{what + ":":8} {_line(found)}')
    print('wrote', output)


def worth_having(records: Sequence[Record]) -> list[int]:
    """Ids of the stitches that are more accurate than randomly mixing their anchors at the same cost.

    Raises:
        SnnetError: the anchors or the stitches were not evaluated, or there is no such stitch.
    """
    gains = gains_over_mixing(records)
    if not gains:
        raise SnnetError(
            'the accuracies of the anchors and of stitches between them decide which are worth having, but they are '
            'not known: run eval_stitches.py first, or name ids with --stitches'
        )
    best = max(gains, key=lambda i: gains[i])
    if gains[best] <= 0:
        legs = next(record.legs for record in records if record.stitch == best)
        raise SnnetError(
            f'none of {len(gains)} stitches is more accurate than mixing its anchors: the best of them, {best} '
            f'({legs}), loses {-gains[best]:.2f} points. Use the anchors alone, or name ids with --stitches'
        )
    return [i for i, gain in gains.items() if gain > 0]


def _line(net: StitchableNet) -> str:
    anchors, joined = ([r for r in net.records if r.anchor is kind] for kind in (True, False))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    parameters += net.own_parameters.count() if net.own_parameters else 0
    height = area(net.records)
    frontier = '' if height is None else f', area under the frontier {height:.2f}'
    return f'{len(joined)} stitches beside {len(anchors)} anchors, {parameters / 1e6:.4g} Mparams{frontier}'
