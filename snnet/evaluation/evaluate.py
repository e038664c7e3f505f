"""Evaluation of every stitch in one pass over the images: each batch is decoded once and every stitch runs on it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..budget.read_record import read_known
from ..budget.record import RESULTS, Record
from ..config.sections import check_ranges
from ..data.datasets import class_names, open_dataset
from ..data.labels import label_table
from ..data.unaugmented_images import clean_loader
from ..errors import SnnetError
from ..net.compile_blocks import compile_blocks, warm_up
from ..net.open_net import open_net
from ..net.save_and_load import write_preprocessing, write_records
from ..net.shared_prefixes import all_logits
from ..net.stitchable_net import StitchableNet
from ..saving.file_names import WEIGHTS
from ..saving.hub import locate
from ..stitching.stitch import parse_ids
from ..utils.distributed import Ranks, ranks
from ..utils.eval_mode import eval_mode
from ..utils.files import clear_temporaries, sha256
from ..utils.json_lines import JsonLines
from ..utils.log import set_up_logging
from ..utils.plugins import import_plugins
from ..utils.progress import Progress
from ..utils.typed_json import TypedTable
from .eval_settings import EvalSettings
from .held_out import refuse_training_images
from .hits import HITS, Tally, note_answers, read_hits, read_targets, score, write_hits
from .label_scores import LabelScores, say_what_is_compared
from .per_class import CLASSES, write_classes, write_confusion
from .prepare_statistics import prepare_statistics

_log = logging.getLogger(__name__)
_SUFFIX_BATCH = 512
"""On a GPU, small batches of several stitches are merged up to so many images: larger ones fill it anyway."""


def evaluate(settings: EvalSettings) -> tuple[StitchableNet, Path]:
    """Evaluates the stitches of a saved net; returns the net with its records and the folder of the results.

    The output folder receives `stitches.jsonl` (a JSON object per stitch), `hits.safetensors` (a bit per image and
    stitch), `classes.csv` (accuracy of every class) and, during the pass, `progress.safetensors` and, where images have
    several labels, `progress.logits`: an evaluation that was stopped at any point is resumed there and ends with the
    same results. The accuracies are also put into the net's config.json, and so are the statistics of BatchNorm where
    they are recalibrated first (`recalibrate` in the settings).

    Raises:
        SnnetError: with a sentence that says what was asked and what is possible.
    """
    check_ranges(settings)
    preprocessing = settings.preprocessing.given()
    import_plugins(settings.plugin)
    with ranks(settings.compute.device) as group:
        set_up_logging(quiet=not group.first)
        folder, own = _place_of(settings), Path(settings.net).is_dir()  # the cache of the Hub is not ours to change
        settings = replace(settings, net=str(folder), output=settings.output or _output(settings.net))
        net = open_net(folder).to(group.device)
        net.preprocessing = {**net.preprocessing, **preprocessing}
        output = Path(settings.output)
        evaluation = Evaluation(settings, net, output, group)  # first, because it refuses bad settings
        prepare_statistics(settings, net, group)
        evaluation.run()
        if group.first and own:
            try:
                if preprocessing:
                    write_preprocessing(folder, net.preprocessing)
                write_records(folder, net.records)
            except OSError as error:
                _log.warning('%s holds the results, but they could not be noted in the net: %s', output, error)
        return net, output


def _place_of(settings: EvalSettings) -> Path:
    """The folder of a saved net, or the file of a published one."""
    net = settings.net
    if settings.recalibrate > 0 and not Path(net).is_dir():
        fetch = f'fetch it first (hf download {net} --local-dir FOLDER)'
        where, remedy = ('a file', 'save it as a folder first') if Path(net).is_file() else ('on the Hub', fetch)
        raise SnnetError(f'recalibrated statistics are kept in the folder of the net, but {net} is {where}: {remedy}')
    return Path(net) if Path(net).is_file() else locate(net)


def _output(net: str) -> str:
    """Where results go by default: into the folder of the net, or for others into output/evaluation."""
    if Path(net).is_dir():
        return str(Path(net) / 'evaluation')
    return str(Path('output') / 'evaluation' / (Path(net).stem if Path(net).is_file() else net))


class Evaluation:
    """One pass over the images for all stitches that have no result yet.

    Args:
        settings: what to evaluate.
        net: its records receive the results.
        output: folder of the results.
        ranks: the processes share the images.
    """

    def __init__(self, settings: EvalSettings, net: StitchableNet, output: Path, ranks: Ranks) -> None:
        net.known.verified(net, thorough=True)  # results must not stand beside those of other weights
        self.settings, self.net, self.output, self.ranks = settings, net, output, ranks
        default = _SUFFIX_BATCH if ranks.device.type == 'cuda' else 0
        self.suffix_batch = default if settings.suffix_batch is None else settings.suffix_batch
        self.autocast = settings.compute.autocast(ranks.device)
        self.wanted = parse_ids(settings.stitches, len(net.stitches))
        if settings.confusion is not None:
            if settings.data.labels:
                raise SnnetError('a confusion needs images of one class each: leave --confusion out with --labels')
            self.wanted = sorted({*self.wanted, net.checked(settings.confusion)})
        self.dataset = open_dataset(settings.data, settings.val_split, net)
        refuse_training_images(settings.data, settings.val_split, self.dataset, Path(settings.net))
        self.indices = spread(len(self.dataset), settings.images)  # type: ignore[arg-type]  # a Dataset with a length
        self.lines = JsonLines(output / 'stitches.jsonl')
        self.hits = output / HITS
        self.partial, self.logits = output / 'progress.safetensors', output / 'progress.logits'
        self.labels = label_table(self.dataset, self.indices)
        say_what_is_compared(net, self.labels is not None)

    def run(self) -> None:
        """Evaluates what is missing and puts what the results file then holds into the net's records."""
        rows = self._earlier_results()
        todo = [stitch for stitch in self.wanted if stitch not in rows or stitch == self.settings.confusion]
        if todo:
            tally = self._pass(todo)
            for record in tally.records(self.net.records):
                rows[record.stitch] = self._row(record)
            if self.ranks.first:
                hits = {stitch: row for stitch, row in read_hits(self.hits, self.fingerprint).items() if stitch in rows}
                hits.update(zip(tally.stitches, tally.hits.numpy(), strict=True))
                write_hits(self.hits, hits, self.fingerprint, tally.targets.numpy())
                self._write_confusion(tally)
                self.lines.rewrite([rows[stitch] for stitch in sorted(rows)])
        if self.ranks.first:
            self._write_classes()
            for path in (self.partial, self.logits):
                path.unlink(missing_ok=True)
        nothing = dict.fromkeys(RESULTS)
        for record in self.net.records:
            row = rows.get(record.stitch, nothing)
            results: dict[str, Any] = {name: row.get(name) for name in RESULTS}
            self.net.records[record.stitch] = replace(record, **results)
        self.ranks.barrier()

    def _write_classes(self) -> None:
        """Writes the accuracy of every class, unless results of an earlier version do not tell the classes."""
        targets = read_targets(self.hits, self.fingerprint)
        if targets is not None:
            names = class_names(self.dataset, self.net.num_classes)
            write_classes(self.output / CLASSES, read_hits(self.hits, self.fingerprint), targets, names)

    def _write_confusion(self, tally: Tally) -> None:
        if tally.confused is not None:
            path = self.output / f'confusion-{tally.confused}.csv'
            names = class_names(self.dataset, self.net.num_classes)
            write_confusion(path, tally.answers.numpy(), tally.targets.numpy(), names)

    @torch.inference_mode()
    def _pass(self, todo: list[int]) -> Tally:
        """Runs the stitches over the images; each rank takes one batch of every window, and none is padded."""
        batch, total = self.settings.data.batch_size, len(self.indices)
        tally = Tally(todo, total, self.settings.confusion)
        tally.resume(self.partial, self.fingerprint)
        ranked = None if self.labels is None else LabelScores(self.logits, self.labels, todo)
        if ranked is not None and not ranked.holds(tally.done):
            _log.warning('%s is damaged, so its images are evaluated again', self.logits)
            tally = Tally(todo, total)
        done = tally.done
        _log.info('evaluating %d stitches on %d images, %d of them done', len(todo), total, done)
        window = batch * self.ranks.world
        starts = range(done + batch * self.ranks.rank, total, window)
        share = [i for at in starts for i in self.indices[at : at + batch]]
        batches = iter(clean_loader(self.settings.data, self.dataset, self.net, share, batch))
        progress = Progress(total, 'images', done, quiet=not self.ranks.first)
        with eval_mode(self.net), self.autocast:
            if self.settings.compute.compile:
                images = torch.zeros(batch, *self.net.input_size, device=self.ranks.device)
                warm_up(compile_blocks(self.net), images, quiet=not self.ranks.first)
            for at in range(done, total, window):
                width = min(window, total - at)
                scores = tally.window(width, self.ranks.device)
                kept = None if ranked is None else ranked.window(width, self.ranks.device)
                if batch * self.ranks.rank < width:
                    self._score(next(batches), todo, scores, kept, progress)
                self.ranks.all_reduce(scores)
                tally.add(scores)
                if ranked is not None and kept is not None:
                    self.ranks.all_reduce(kept)
                    if self.ranks.first:
                        ranked.add(kept, at)
                progress.update(width)
                if self.ranks.first:
                    tally.save(self.partial, self.fingerprint)
        progress.close()
        if ranked is not None:
            self.ranks.barrier()  # the first one has written the logits of all
            tally.precisions = ranked.mean_average_precisions(quiet=not self.ranks.first)
        return tally

    def _score(
        self, batch: Sequence[Tensor], todo: list[int], scores: Tensor, kept: Tensor | None, progress: Progress
    ) -> None:
        """Puts a batch of this rank into its place in the scores of a window, and its logits where they are kept."""
        images, targets = (x.to(self.ranks.device) for x in batch)
        first = self.settings.data.batch_size * self.ranks.rank
        row, answers = {stitch: i for i, stitch in enumerate(todo)}, None
        for count, (stitch, logits) in enumerate(all_logits(self.net, images, todo, self.suffix_batch), start=1):
            score(logits, targets, scores[row[stitch]], first)
            if kept is not None:
                kept[row[stitch], first : first + len(logits)] = logits.float()
            if stitch == self.settings.confusion:
                answers = logits.argmax(dim=1)
            progress.update(0, f'{count} of {len(todo)} stitches of a batch')
        note_answers(targets, answers, scores, first)

    def _earlier_results(self) -> dict[int, dict[str, Any]]:
        """Results in the output folder; refuses those of other weights or images."""
        if self.ranks.first:
            self.output.mkdir(parents=True, exist_ok=True)
            for folder in (self.output, Path(self.settings.net)):
                clear_temporaries(folder)
            if self.settings.overwrite:
                for path in (self.lines.path, self.hits, self.partial, self.logits):
                    path.unlink(missing_ok=True)
        self.ranks.barrier()
        rows = self.lines.read()
        if any(row.get('of') != self.fingerprint for row in rows):
            raise SnnetError(
                f'{self.lines.path} holds results of other weights, statistics, images, labels or precision: '
                f'discard them with --overwrite, or name another --output'
            )
        found = {}
        for row in rows:
            table = TypedTable(row, str(self.lines.path))
            known = read_known(table)
            found[table.integer('id', 0, len(self.net.stitches) - 1)] = row | {
                name: known.get(name) for name in RESULTS
            }
        return found

    def _row(self, record: Record) -> dict[str, Any]:
        """A line of the results file."""
        values = {name: value for name, value in asdict(record).items() if name not in ('latency_ms', 'memory')}
        return {'id': values.pop('stitch'), **values, 'of': self.fingerprint}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of what results depend on: weights, what stitches have for themselves, images, precision."""
        names = self.dataset.filenames() if hasattr(self.dataset, 'filenames') else self.settings.data.dataset
        compute = self.settings.compute
        precision = (compute.amp_dtype if compute.amp else 'float32', compute.compile)
        held = self.net.statistics
        statistics = held.digest() if held is not None and held.values else None
        place, split = Path(self.settings.net), self.settings.val_split
        weights = sha256(place if place.is_file() else place / WEIGHTS)
        changed: list[Any] = [self.net.preprocessing] if self.net.preprocessing else []
        if self.net.own_parameters is not None:
            changed.append(self.net.own_parameters.digest())
        if self.labels is not None:
            changed.append(hashlib.sha256(self.labels.tobytes()).hexdigest())
        facts = (weights, statistics, names, split, list(self.indices), precision, *changed)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


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
