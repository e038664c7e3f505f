"""The command `snnet`: finds the subcommand and runs it. Each subcommand is a module of this package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module

from .. import __version__

COMMANDS = {
    'adapt': 'make stitches answer as the largest anchor does; no anchor changes',
    'keep': 'write a net with only the stitches that are worth having',
    'profile': 'measure latency and memory of the stitches on this machine',
    'export': 'write a stitch, or a set of them, as torch.export or ONNX',
    'serve': 'answer requests over HTTP and keep their deadlines (several FOLDERs are possible)',
    'simulate': 'show how a controller keeps deadlines as the load changes',
    'predict': 'name the classes of images (FOLDER of the net, then files or folders of images)',
    'report': 'write a page about a training run or a net, with curves, tables and images',
    'info': 'print the anchors, the frontier and the latency tables',
    'split': 'divide a folder of classes into training and validation images',
    'line': 'print the positions of a network (NETWORK instead of FOLDER)',
}
"""Module and help text of each subcommand. The module of `info` holds `InfoSettings`, whose first field is
the argument without a flag, and `run`. Where there are more such arguments, `POSITIONAL` names them all; where `run`
returns an integer, that is the exit code."""
_CONTINUE = ('adapt', 'export', 'profile')
"""Commands that keep what they have done when they are interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: arguments; by default those of the process.

    Returns:
        The exit code: 0, 1 where a part could not be done, 2 for bad input, which is explained in one sentence, or 130
        where it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog='snnet',
        description='Elastic neural networks in production. FOLDER is a folder written by save_pretrained, or a '
        'repository id on the Hugging Face Hub.',
        epilog='\n'.join(['commands:', *(f'  {name:<10}{text}' for name, text in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'snnet {__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of the commands below')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='FOLDER ...', help='see snnet COMMAND --help')
    given = parser.parse_args(argv)
    return _run(given.command, given.arguments)


def _run(name: str, arguments: Sequence[str]) -> int:
    from ..config.parse import parse
    from ..errors import SnnetError, in_words
    from ..utils.log import set_up_logging

    command = import_module(f'.{name}', __package__)
    kind = getattr(command, f'{name.capitalize()}Settings')
    set_up_logging()
    positional = getattr(command, 'POSITIONAL', fields(kind)[0].name)
    try:
        done = command.run(parse(kind, arguments, positional=positional, prog=f'snnet {name}'))
    except (SnnetError, OSError) as error:  # OSError: the disk is full, or the folder may not be written
        print(f'snnet {name}: {in_words(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = '; the same command continues where it stopped' if name in _CONTINUE else ''
        print(f'snnet {name}: interrupted{more}', file=sys.stderr)
        return 130
    return done if isinstance(done, int) else 0


if __name__ == '__main__':  # python -m snnet.cli.main
    sys.exit(main())
