"""`snnet line NETWORK`: prints the positions of a network, which legs and cuts refer to."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option


@dataclass
class LineSettings:
    """Settings of `snnet line`."""

    network: str = option('', 'a network: NAME, NAME=FILE, or FOLDER of a single network that was saved')
    img_size: int | None = option(None, 'pixels per side (default: those of the weights)', least=1)
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: LineSettings) -> None:
    """Prints every position with the module behind it, grid, channels and parameters.

    Raises:
        SnnetError: an unknown network, or one that is not a line.
    """
    from ..config.sections import check_ranges  # here, so that --help does not load torch
    from ..net.create import load_zoo
    from ..reassembly.line_table import format_line, line_rows
    from ..utils.plugins import import_plugins

    check_ranges(settings)
    import_plugins(settings.plugin)
    for anchor in load_zoo([settings.network], pretrained=False, img_size=settings.img_size).values():
        print(format_line(line_rows(anchor)))
