"""Evaluation of every stitch in one pass over the images: each batch is decoded once and every stitch runs on it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import EvalSettings
from .data import clean_loader, open_dataset
from .distributed import Ranks, ranks
from .errors import SnnetError, UnknownStitch
from .files import clear_temporaries, write_text
from .frontier import Record
from .hub import WEIGHTS, write_records
from .log import JsonLines, Progress, set_up_logging
from .modes import autocast, eval_mode
from .net import StitchableNet
from .plugins import import_plugins
from .tree import all_logits

_log = logging.getLogger(__name__)
RESULTS = ('top1', 'top5', 'loss', 'n')
"""What evaluation finds out about a stitch."""


class Tally:
    """Counts of right answers and sums of losses of many stitches; they add over batches and ranks.

    Args:
        stitches: ids.
        device: where the sums live.
    """

    def __init__(self, stitches: Sequence[int], device: torch.device) -> None:
        self.stitches = list(stitches)
        self.row = {stitch: i for i, stitch in enumerate(self.stitches)}
        self.sums = torch.zeros(len(self.stitches), 4, dtype=torch.float64, device=device)

    def add(self, stitch: int, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch of logits (N, classes) with classes (N,)."""
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction='none').double().sum()
        row = torch.stack([best[:, 0].sum(), best.sum(), loss, torch.tensor(len(targets), device=loss.device)])
        self.sums[self.row[stitch]] += row

    def records(self, records: Sequence[Record]) -> list[Record]:
        """The records of the tallied stitches with top-1, top-5, loss and the number of images."""
        found = []
        for stitch, (top1, top5, loss, n) in zip(self.stitches, self.sums.tolist(), strict=True):
            found.append(replace(records[stitch], top1=100 * top1 / n, top5=100 * top5 / n, loss=loss / n, n=int(n)))
        return found


def evaluate(settings: EvalSettings) -> tuple[StitchableNet, Path]:
    """Evaluates the stitches of a saved net; returns the net with its records and the folder of the results.

    The output folder gets `stitches.jsonl` (a JSON object a stitch), and `progress.json` while the pass lasts;
    an interrupted evaluation goes on where it was. The accuracies are also put into the net's config.json.

    Raises:
        SnnetError: with a sentence that says what was asked and what is possible.
    """
    import_plugins(settings.plugin)
    with ranks(settings.device) as group:
        set_up_logging(quiet=not group.first)
        folder = Path(settings.net)
        net = StitchableNet.from_pretrained(folder).to(group.device)
        output = Path(settings.output) if settings.output else folder / 'evaluation'
        Evaluation(settings, net, output, group).run()
        if group.first:
            try:
                write_records(folder, net.records)
            except OSError as error:
                _log.warning('%s holds the results, but they could not be noted in the net: %s', output, error)
        return net, output


class Evaluation:
    """One pass over the images for all stitches that have no result yet.

    Args:
        settings: what to evaluate.
        net: its records receive the results.
        output: folder of the results.
        ranks: the processes share the images.
    """

    def __init__(self, settings: EvalSettings, net: StitchableNet, output: Path, ranks: Ranks) -> None:
        self.settings, self.net, self.output, self.ranks = settings, net, output, ranks
        if settings.batch_size < 1:
            raise SnnetError(f'batch_size is at least 1, not {settings.batch_size}')
        self.autocast = autocast(settings.amp, settings.amp_dtype, ranks.device)
        self.wanted = parse_ids(settings.stitches, len(net.stitches))
        self.dataset = open_dataset(settings, settings.val_split, net)
        self.indices = spread(len(self.dataset), settings.images)  # type: ignore[arg-type]  # a Dataset with a length
        self.lines = JsonLines(output / 'stitches.jsonl')
        self.partial = output / 'progress.json'
        self.fingerprint = self._fingerprint()

    def run(self) -> None:
        """Evaluates what is missing and makes the net's records say exactly what the results file says."""
        rows = self._earlier_results()
        todo = [stitch for stitch in self.wanted if stitch not in rows]
        if todo:
            for record in self._pass(todo).records(self.net.records):
                rows[record.stitch] = self._row(record)
            if self.ranks.first:
                self.lines.rewrite([rows[stitch] for stitch in sorted(rows)])
                self.partial.unlink(missing_ok=True)
        nothing = dict.fromkeys(RESULTS)
        for record in self.net.records:
            row = rows.get(record.stitch, nothing)
            self.net.records[record.stitch] = replace(record, **{name: row[name] for name in RESULTS})
        self.ranks.barrier()

    @torch.inference_mode()
    def _pass(self, todo: list[int]) -> Tally:
        """Runs the stitches over the images; each rank takes one batch of every window, and none is padded."""
        tally = Tally(todo, self.ranks.device)
        done = self._take_up(tally)
        _log.info('evaluating %d stitches on %d images, %d of them done', len(todo), len(self.indices), done)
        batch, total = self.settings.batch_size, len(self.indices)
        window = batch * self.ranks.world
        starts = range(done + batch * self.ranks.rank, total, window)
        share = [i for at in starts for i in self.indices[at : at + batch]]
        batches = iter(clean_loader(self.settings, self.dataset, self.net, share, batch))
        progress = Progress(total, 'images', done, quiet=not self.ranks.first)
        with eval_mode(self.net), self.autocast:
            for at in range(done, total, window):
                if at + batch * self.ranks.rank < total:
                    images, targets = next(batches)
                    images, targets = images.to(self.ranks.device), targets.to(self.ranks.device)
                    for count, (stitch, logits) in enumerate(all_logits(self.net, images, todo), start=1):
                        tally.add(stitch, logits, targets)
                        progress.update(0, f'{count} of {len(todo)} stitches of a batch')
                reached = min(at + window, total)
                progress.update(reached - at)
                self._save(tally, reached)
        progress.close()
        self.ranks.all_reduce(tally.sums)
        return tally

    def _save(self, tally: Tally, reached: int) -> None:
        """Notes the sums over all ranks, so that an interrupted pass goes on after `reached` images."""
        sums = tally.sums.clone()
        self.ranks.all_reduce(sums)
        if self.ranks.first:
            state = {'of': self.fingerprint, 'stitches': tally.stitches, 'images': reached, 'sums': sums.tolist()}
            write_text(self.partial, json.dumps(state))

    def _take_up(self, tally: Tally) -> int:
        """Loads the sums of an interrupted pass over the same stitches; returns how many images are done."""
        if not self.partial.exists():
            return 0
        try:
            state = json.loads(self.partial.read_text(encoding='utf-8'))
        except json.JSONDecodeError:
            return 0
        if state.get('of') != self.fingerprint or state.get('stitches') != tally.stitches:
            return 0
        if self.ranks.first:
            tally.sums += torch.tensor(state['sums'], dtype=torch.float64, device=tally.sums.device)
        return int(state['images'])

    def _earlier_results(self) -> dict[int, dict[str, Any]]:
        """Results in the output folder; refuses those of other weights or images."""
        if self.ranks.first:
            self.output.mkdir(parents=True, exist_ok=True)
            for folder in (self.output, Path(self.settings.net)):
                clear_temporaries(folder)
            if self.settings.overwrite:
                self.lines.path.unlink(missing_ok=True)
                self.partial.unlink(missing_ok=True)
        self.ranks.barrier()
        rows = self.lines.read()
        if any(row.get('of') != self.fingerprint for row in rows):
            raise SnnetError(
                f'{self.lines.path} holds results of other weights, images or precision: '
                f'discard them with --overwrite, or name another --output'
            )
        return {row['id']: row for row in rows}

    def _row(self, record: Record) -> dict[str, Any]:
        """A line of the results file."""
        values = asdict(record)
        return {'id': values.pop('stitch'), **values, 'of': self.fingerprint}

    def _fingerprint(self) -> str:
        """Tells apart what results depend on: weights, images, precision."""
        digest = hashlib.sha256()
        with open(Path(self.settings.net) / WEIGHTS, 'rb') as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        names = self.dataset.filenames() if hasattr(self.dataset, 'filenames') else self.settings.dataset
        precision = self.settings.amp_dtype if self.settings.amp else 'float32'
        digest.update(repr((names, self.settings.val_split, list(self.indices), precision)).encode())
        return digest.hexdigest()[:16]


def parse_ids(text: str, count: int) -> list[int]:
    """Stitch ids of a list such as '0-2,24'; all of them where it is empty.

    Raises:
        UnknownStitch: a part is no id or range of ids below `count`.
    """
    if not text:
        return list(range(count))
    found: set[int] = set()
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)\s*(?:-\s*(\d+)\s*)?', part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < count:
            raise UnknownStitch(f"stitch ids are 0 to {count - 1} and ranges of them, but got '{part.strip()}'")
        found.update(range(first, last + 1))
    return sorted(found)


def spread(total: int, wanted: int | None) -> Sequence[int]:
    """Indices of `wanted` of `total` images, evenly spread (folders are sorted by class); all where None.

    Raises:
        SnnetError: fewer than one, or more than there are.
    """
    if wanted is None:
        return range(total)
    if not 1 <= wanted <= total:
        raise SnnetError(f'--images {wanted} was asked for, but there are {total} images')
    return [i * total // wanted for i in range(wanted)]
