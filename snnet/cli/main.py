"""The console command of the deploying side: snnet profile | export | simulate | info FOLDER."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from ..config.parse import parse
from ..config.settings import ExportSettings, InfoSettings, ProfileSettings, SimulateSettings
from ..errors import SnnetError
from ..exporting.export_set import run as export
from ..profiling.profile import run as profile
from ..serve.simulation_report import run as simulate
from ..utils.log import set_up_logging
from .info import run as info


class Command(NamedTuple):
    """A command: its settings, what runs it, and a line of help."""

    settings: type[Any]
    run: Callable[[Any], object]
    help: str


COMMANDS = {
    'profile': Command(ProfileSettings, profile, 'measure latency and memory of the stitches on this machine'),
    'export': Command(ExportSettings, export, 'write a stitch, or a set of them, as torch.export or ONNX'),
    'simulate': Command(SimulateSettings, simulate, 'show how a controller holds deadlines as the load moves'),
    'info': Command(InfoSettings, info, 'print the anchors, the frontier and the tables at hand'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 2 for bad input, which is told in one sentence."""
    parser = argparse.ArgumentParser(
        prog='snnet',
        description='Elastic neural networks in production. FOLDER is what save_pretrained wrote, or the id of a hub.',
        epilog='\n'.join(['commands:', *(f'  {name:<10}{command.help}' for name, command in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'snnet {version("snnet")}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of the commands below')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='FOLDER ...', help='see snnet COMMAND --help')
    given = parser.parse_args(argv)
    command = COMMANDS[given.command]
    set_up_logging()
    try:
        command.run(parse(command.settings, given.arguments, 'folder', prog=f'snnet {given.command}'))
    except (SnnetError, OSError) as error:  # OSError: a disk that is full, a folder that may not be written
        print(f'snnet {given.command}: {error}', file=sys.stderr)
        return 2
    return 0
