"""Which of timm's networks become lines: one small variant of every architecture file, with random weights.

    python benchmarks/lines.py [--out docs/results/lines.md] [FILE ...]

Each runs in a separate process with limits on time and memory, is wrapped by `snnet.as_anchor`, and is compared with
the bare model bit by bit: in eval mode, in train mode from the same seed (with the statistics that this leaves),
each gradient, and cut into two halves. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import re
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from timm.models import list_modules
from torch import Tensor, nn

import snnet
from snnet.utils.log import set_up_logging
from snnet.utils.progress import Progress

SMALL = re.compile(
    r'atto|femto|pico|nano|tiny|mini|small|micro|xxs|_xs|_s\d?(_|$)|_t\d?(_|$)|[bms]0|18|_0\d\d|\d_0?[1-5]0'
)
LIMIT = 240.0
"""Seconds for one network."""
MEMORY = 20 * 2**30
"""Bytes for one network."""
CANDIDATES = 3


class Row(NamedTuple):
    """A line of the table."""

    file: str
    model: str
    blocks: int = 0
    stages: str = ''
    how: str = ''
    eval: str = ''
    train: str = ''
    gradient: str = ''
    cut: str = ''
    refusal: str = ''


def smallest(file: str) -> str:
    """The variant of an architecture file with the fewest parameters among those whose names promise it."""
    names = [name for name in timm.list_models(module=file) if not name.startswith('test_')]
    promising = sorted(names, key=lambda name: (not SMALL.search(name), len(name)))[:CANDIDATES]
    sizes = {}
    for name in promising:
        with torch.device('meta'):
            try:
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception:  # what cannot be made without memory is tried only where nothing else is there
                continue
    return min(sizes, key=lambda name: sizes[name]) if sizes else promising[0]


def compared(file: str, model_name: str) -> Row:
    """Makes a network, its line, and compares them."""
    torch.manual_seed(0)
    model = timm.create_model(model_name)
    try:
        anchor = snnet.as_anchor(model)
        anchor.boundaries  # noqa: B018
    except snnet.SnnetError as error:
        return Row(file, model_name, refusal=str(error))
    spans = [len(span) for span in anchor.blocks()]
    how = 'trace' if 'Traced' in type(anchor).__name__ else type(anchor).__name__
    x = torch.randn(2, *anchor.input_size)
    anchor.eval()
    with torch.no_grad():
        evaluated = torch.equal(anchor(x), model(x))
    twin, bare = copy.deepcopy(anchor).train(), copy.deepcopy(model).train()
    ours, theirs = drawn(twin, x), drawn(bare, x)
    buffers = all(torch.equal(a, b) for a, b in zip(twin.buffers(), bare.buffers(), strict=True))
    trained = all(map(torch.equal, ours, theirs)) and buffers
    for out in (ours, theirs):
        sum(y.float().square().mean() for y in out).backward()  # type: ignore[union-attr]
    pairs = zip(twin.parameters(), bare.parameters(), strict=True)
    gradient = all(
        (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad)) for a, b in pairs
    )
    words = [('yes' if same else 'NO') for same in (evaluated, trained, gradient, halves(anchor, model, x))]
    return Row(file, model_name, sum(spans), ' + '.join(map(str, spans)), how, *words)


@torch.no_grad()
def halves(anchor: snnet.Anchor, model: nn.Module, x: Tensor) -> bool:
    """Whether two cuts, each with its own parameters, give the output of the whole."""
    middle = len(anchor.line()) // 2
    front, end = anchor.cut(None, middle), anchor.cut(middle, None)
    features = front.run(x, None, middle)
    return torch.equal(end.run(features, middle), model(x))


def drawn(network: nn.Module, x: Tensor) -> list[Tensor]:
    """What a network puts out with the random numbers of one seed."""
    torch.manual_seed(1)
    out = network(x)
    return [out] if isinstance(out, Tensor) else list(out)


def tried(file: str, pipe: Connection) -> None:
    """Runs in a separate process."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    name = file
    try:
        name = smallest(file)
        pipe.send(compared(file, name))
    except Exception as error:
        pipe.send(Row(file, name, refusal=f'FAILED: {type(error).__name__}: {error}'.splitlines()[0]))


def row(file: str) -> Row:
    """What became of an architecture file."""
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=tried, args=(file, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(LIMIT) else Row(file, '', refusal=f'FAILED: not done after {LIMIT:.0f} s')
    except EOFError:
        return Row(file, '', refusal=f'FAILED: the process ended (of memory, perhaps: {MEMORY / 2**30:.0f} GiB)')
    finally:
        process.kill()
        process.join()


def table(rows: list[Row]) -> str:
    """Markdown, with totals."""
    lines = [r for r in rows if not r.refusal]
    equal = [r for r in lines if (r.eval, r.train, r.gradient, r.cut) == ('yes',) * 4]
    traced = [r for r in lines if r.how == 'trace']
    many = [r for r in lines if r.blocks >= 8]
    text = [
        f'{len(lines)} of {len(rows)} architecture files become lines ({len(traced)} of them traced, the others '
        f'through an adapter), {len(many)} with eight blocks or more; {len(equal)} equal the bare model bit by bit in '
        'eval mode, in train mode, in every gradient and cut into two.',
        '',
        '| file | model | blocks | stages | how | eval | train | gradient | cut |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for r in lines:
        cells = (r.file, r.model, str(r.blocks), r.stages, r.how, r.eval, r.train, r.gradient, r.cut)
        text.append(f'| {" | ".join(cells)} |')
    refused = [f'| {r.file} | {r.model} | {r.refusal.replace("|", "/")} |' for r in rows if r.refusal]
    if refused:
        text += ['', 'Refused:', '', '| file | model | reason |', '|---|---|---|', *refused]
    return '\n'.join(text)


def main() -> None:
    """Tries every file that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='*', metavar='FILE', help='architecture files of timm; all by default')
    parser.add_argument('--out', type=Path, help='where to write the table')
    args = parser.parse_args()
    set_up_logging()
    files = args.files or [file for file in list_modules() if timm.list_models(module=file)]
    rows, progress, begin = [], Progress(len(files), 'files'), time.monotonic()
    for file in files:
        rows.append(row(file))
        progress.update(1, ', '.join(map(str, rows[-1])))
    progress.close()
    minutes = (time.monotonic() - begin) / 60
    versions = f'timm {timm.__version__}, torch {torch.__version__.split("+")[0]}'
    text = (
        '# Which timm networks work\n\n<!-- commands on this page are not run: takes an hour -->\n\n'
        '```bash\npython benchmarks/lines.py --out docs/results/lines.md\n```\n\n'
        f'{minutes:.0f} minutes on one core, {versions}.\n\n'
        f'{table(rows)}\n'
    )
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == '__main__':
    main()
