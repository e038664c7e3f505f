"""Training that one can leave running: it goes on from its newest checkpoint, and ends as if it had never stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from ..config.parse import TrainSettings
from ..data.datasets import TrainImages, initialization_images
from ..errors import SnnetError
from ..evaluation.prepare_statistics import recalibrate_in_sight
from ..net.batchnorm import batch_norms
from ..net.compile_blocks import compile_blocks, warm_up
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks, ranks
from ..utils.log import Progress, set_up_logging
from ..utils.modes import autocast
from ..utils.plugins import import_plugins
from ..utils.seeds import generator, key, seed_libraries
from .check_settings import check
from .checkpoint import Checkpoints, State
from .growth import make_grower, told
from .initial_net import build_net, initialize_layers
from .run_folder import RunFolder
from .signals import StopRequest, Watchdog
from .step import Batch, Step

_log = logging.getLogger(__name__)


def train(settings: TrainSettings) -> Path | None:
    """Trains a stitchable net as the settings say and returns the folder of the saved net.

    The output folder gets `config.yaml`, `train.log`, `log.jsonl`, `checkpoints` and, at the end, `net`. Where it
    holds a run of the same settings already, that run goes on.

    Returns:
        The folder of the net, or None where SIGTERM, SIGINT or SIGUSR1 ended the run early, with a checkpoint.

    Raises:
        SnnetError: with a sentence that says what was asked and what is possible; what earlier runs wrote is whole.
    """
    check(settings)
    import_plugins(settings.plugin)
    with ranks(settings.device, settings.timeout) as group, Watchdog(settings.timeout) as watchdog:
        set_up_logging(quiet=not group.first)
        folder = RunFolder(settings, group.world)
        folder.refuse_what_is_not_ours()
        try:
            with StopRequest() as stop:
                return Trainer(settings, group, folder, stop, watchdog).run()
        except (Exception, KeyboardInterrupt) as error:
            folder.note_error(group.rank, error)
            raise


class Trainer:
    """A training run.

    Args:
        settings: what to do.
        ranks: this process among those of the run.
        folder: where it writes.
        stop: says when a signal asked for an end.
        watchdog: is told of every step.
    """

    def __init__(
        self, settings: TrainSettings, ranks: Ranks, folder: RunFolder, stop: StopRequest, watchdog: Watchdog
    ) -> None:
        self.settings, self.ranks, self.folder, self.stop, self.watchdog = settings, ranks, folder, stop, watchdog
        seed_libraries(key(settings.seed, 'build'))  # for weights that are not loaded
        self.net = build_net(settings).to(ranks.device)
        self.images = TrainImages(settings, self.net, ranks)
        if settings.channels_last:
            self.net.to(memory_format=torch.channels_last)
        for i in range(len(self.net.anchors)):
            self.net.anchor(i).checkpointing = settings.grad_checkpointing
            if settings.freeze_anchors:
                self.net.anchor(i).freeze()
        for i in range(len(self.net.stitch_layers) if settings.stitch_rank else 0):
            self.net.layer(i).start_update(settings.stitch_rank, generator(settings.seed, 'update', i))
        self.step = Step(settings, self.net, ranks, self.images)
        self.updates = self.step.updates
        self.total = settings.epochs * self.updates
        self.average = _average_of(self.net, settings) if settings.model_ema else None
        modules = {'net': self.net, **({'average': self.average.module} if self.average else {})}
        average = self.average.module if self.average else None
        self.grower = make_grower(settings, self.net, self.step.optimizer, average, ranks, self.total)
        self.step.grower = self.grower
        self.state = State(modules, self.step.optimizer, self.step.scaler)
        self.checkpoints = Checkpoints(folder.path / 'checkpoints', settings.checkpoint_keep)

    def run(self) -> Path | None:
        """Trains from the newest checkpoint, or from the start, to the end; returns the folder of the net."""
        if self.ranks.first:
            self.folder.open()
            set_up_logging(self.folder.path / 'train.log')
        begin = self._resume()
        if begin is None:
            begin = 0
            self._start()
        _log.info(
            '%d stitches of %d anchors, %d epochs of %d steps, batches of %d on %d processes (%s)',
            len(self.net.stitches), len(self.net.anchors), self.settings.epochs, self.updates,
            self.settings.batch_size, self.ranks.world, self.ranks.device,
        )  # fmt: skip
        if self.settings.compile and begin < self.total:
            self._compile()
        if not self._train(begin):
            return None
        if self.ranks.share(self.ranks.first and begin == self.total and _whole(self.folder.net)):
            _log.info('%s is trained already', self.folder.net)
        else:
            self._finish(self.average.module if self.average else self.net)
        return self.folder.net

    def _finish(self, net: StitchableNet) -> None:
        """Folds branches, gives every stitch BatchNorm statistics of its own where anchors moved, and saves the net."""
        self.watchdog.alive()
        if self.grower is not None:
            self.grower.fold()
        settings = self.settings
        shared = len(net.stitches) > 1  # the running statistics of one stitch alone are its own
        if settings.recalibrate and shared and batch_norms(net) and not settings.freeze_anchors:
            share = -(-settings.recalibrate // self.ranks.world)
            recalibrate_in_sight(net, self._training_images(), share, self.ranks)
        net.eval()
        if self.ranks.first:
            net.save_pretrained(self.folder.net)
            _log.info('saved the net; next: %s', self._next_command())
        self.ranks.barrier()

    def _training_images(self) -> Iterator[Tensor]:
        """Images as the steps saw them, of an epoch that none of them took: clean ones have other statistics."""
        first = self.settings.epochs * len(self.images)
        for number, batch in enumerate(self.images.epoch(self.settings.epochs), start=first):
            yield self.step.prepared(Batch(number, *batch))[0]

    def _compile(self) -> None:
        """Compiles the blocks now, so that no later step stops for it."""
        compile_blocks(self.net)
        self.net.train()
        images = torch.zeros(self.settings.batch_size, *self.net.input_size, device=self.ranks.device)
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.settings.amp, self.settings.amp_dtype, self.ranks.device):
            warm_up(self.net, images, quiet=not self.ranks.first)
        self.watchdog.alive()

    def _train(self, begin: int) -> bool:
        """Takes the steps from `begin` on; False where a signal ended them early."""
        progress = Progress(self.total, 'steps', begin, quiet=not self.ranks.first)
        losses: list[float] = []
        saved, last = time.monotonic(), begin
        for step, batches in self._batches(begin):
            quarantine = self.images.quarantine
            asks = [self.stop.received is not None, self._due(step + 1, saved), quarantine.unsettled > 0]
            row, (stopping, saving, unsettled) = self.step(step, batches, asks)
            self._grow(row)
            self._note(progress, row)
            if unsettled:
                quarantine.settle()
            if row['loss'] is not None:
                losses.append(row['loss'])
            saving = saving or stopping or step + 1 == self.total
            if saving or (step + 1) % self.settings.check_steps == 0:
                self._compare(step)
            if saving:
                last = step + 1 if self._save(step + 1, losses) else last
                saved, losses = time.monotonic(), []
            if stopping and step + 1 < self.total:
                progress.close()
                _log.info('stopped after step %d of %d; the same command goes on after %d', step + 1, self.total, last)
                return False
        progress.close()
        return True

    def _batches(self, begin: int) -> Iterator[tuple[int, list[Batch]]]:
        """Number and batches of every step from `begin` on."""
        together, repeat = self.settings.grad_accum_steps, self.settings.teacher_epochs
        for epoch in range(begin // self.updates, self.settings.epochs):
            first = max(begin, epoch * self.updates)
            self.net.train()
            drawn = epoch % repeat if repeat else epoch  # repeated augmentations are answered by the stored teacher
            place = first % self.updates * together
            batches = enumerate(self.images.epoch(drawn, place), start=drawn * len(self.images) + place)
            for step in range(first, (epoch + 1) * self.updates):
                yield step, [Batch(number, *batch) for number, batch in islice(batches, together)]

    def _grow(self, row: dict[str, Any]) -> None:
        """Lets branches grow behind a step that has moved weights."""
        if self.grower is None or row.get('skipped'):
            return
        changes = self.grower.step()
        if changes:
            self.step.follow()
            row['changes'] = [*map(told, changes)]

    def _note(self, progress: Progress, row: dict[str, Any]) -> None:
        """Says how a step went."""
        self.watchdog.alive()
        if self.average is not None:
            self.average.update(self.net, row['step'] + 1)
        progress.update(1, f'loss {row["loss"]:.3f}' if row['loss'] is not None else 'loss not finite')
        if row.get('skipped'):
            _log.warning('step %d was left out: the gradients of stitch %s are not finite', row['step'], row['stitch'])
        due = (row['step'] + 1) % self.settings.log_interval == 0
        if self.ranks.first and (due or 'skipped' in row or 'changes' in row):
            size = {} if self.grower is None else {'train_flops': self.grower.flops}
            self.folder.lines.append({'epoch': row['step'] // self.updates, **row, **size})
        if self.step.skips >= self.settings.max_skips:
            raise SnnetError(
                f'gradients were not finite in {self.step.skips} steps in a row, the last of stitch {row["stitch"]} at '
                f'step {row["step"]}: lower --lr or set --clip-grad; the last good checkpoint is kept'
            )

    def _due(self, done: int, saved: float) -> bool:
        """Whether this rank wants a checkpoint after `done` steps; the clock is the first rank's."""
        steps, minutes = self.settings.checkpoint_steps, self.settings.checkpoint_minutes
        by_steps = steps is not None and done % steps == 0
        return by_steps or (self.ranks.first and minutes is not None and time.monotonic() - saved > 60 * minutes)

    def _save(self, step: int, losses: list[float]) -> bool:
        """Writes a checkpoint; False on the first rank where there was no room."""
        self.step.flush()
        done = True
        if self.ranks.first:
            loss = sum(losses) / len(losses) if losses else None
            self.folder.lines.sync()
            if not self.folder.noted:  # somebody removed the folder
                self.folder.note_settings()
            values: dict[str, Any] = {'loss': loss, 'skips': self.step.skips}
            if self.grower is not None:
                values['grower'] = self.grower.state_dict()
            done = self.checkpoints.save(step, self.state, values)
        self.watchdog.alive()
        return done

    def _compare(self, step: int) -> None:
        """Ends the run where the ranks' weights have drifted apart, for their gradients then mean nothing."""
        strangers = self.step.exchange.strangers()
        if strangers:
            told = '; '.join(f'rank {rank} from {name} on' for rank, name in strangers.items())
            raise SnnetError(
                f'after step {step} the weights of some ranks differ from the first rank ({told}), so no '
                f'checkpoint was written; run it again to go on from the last one'
            )

    def _start(self) -> None:
        """Initializes the stitch layers, and the branches that are there from the start."""
        initialize_layers(self.settings, self.net, self.ranks, self.watchdog.alive)
        if self.grower is not None and self.settings.grow_static:
            images, _ = initialization_images(self.settings, self.net, self.ranks)
            self.grower.grow_all(next((batch for batch, _ in images), None))
            self.step.follow()
        if self.ranks.first:
            self.folder.lines.rewrite([])
        if self.average is not None:
            self.average.set(self.net)
        self._save(0, [])

    def _resume(self) -> int | None:
        """Takes up the newest checkpoint that verifies; returns its step, or None where there is none."""
        values = self.ranks.share(self.checkpoints.newest() if self.ranks.first else None)
        step = 0 if values is None else values['step']
        if self.ranks.first:
            self.folder.note_attempt(step)
        self.ranks.barrier()
        if values is None:
            return None
        if self.grower is not None:
            self.grower.load_state_dict(values['grower'])
            self.step.follow()
        self.checkpoints.load(step, self.state)
        self.step.skips = values['skips']
        if self.ranks.first:
            self.folder.lines.rewrite([row for row in self.folder.lines.read() if row['step'] < step])
        _log.info('%s goes on after step %d of %d', self.folder.path, step, self.total)
        return step

    def _next_command(self) -> str:
        """How the net is evaluated on the data it was trained on."""
        words = ['python eval_stitches.py', str(self.folder.net)]
        words += ['--plugin', *self.settings.plugin] if self.settings.plugin else []
        words += ['--dataset', self.settings.dataset] if self.settings.dataset else []
        words += ['--data-dir', self.settings.data_dir] if self.settings.data_dir else []
        return ' '.join(words)


def _average_of(net: StitchableNet, settings: TrainSettings) -> ModelEmaV3:
    """A moving average whose decay grows from 0 to the one set, so that short runs do not keep their first weights."""
    return ModelEmaV3(net, decay=settings.model_ema_decay, use_warmup=True)


def _whole(folder: Path) -> bool:
    """Whether a saved net is there and can be loaded."""
    try:
        StitchableNet.from_pretrained(folder)
    except SnnetError:
        return False
    return True
