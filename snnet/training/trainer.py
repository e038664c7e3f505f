"""A training run that can be left alone: it resumes from its newest checkpoint and ends as if it had never stopped."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..anchors.names import is_whole_net
from ..data.train_images import TrainImages
from ..data.unaugmented_images import initialization_images
from ..errors import SnnetError
from ..utils.distributed import Ranks, ranks
from ..utils.log import set_up_logging
from ..utils.plugins import import_plugins
from ..utils.progress import Progress
from ..utils.seeds import key, seed_libraries
from .adapt_stitches import adapt_stitches, check_adaptation
from .build_net import build_net, choose_trained_weights
from .check_batch_norms import check_batch_norms
from .check_settings import check_settings
from .checkpoint import Checkpoints
from .compile_net import compile_net
from .finish_run import give_statistics, is_saved, next_command, save_net, settle_grown_layers
from .fitted_heads import make_fitted_heads
from .growth import as_log_entry, make_grower
from .initialize_layers import initialize_layers
from .low_rank import merge_updates
from .make_step import make_step
from .run_folder import RunFolder
from .run_state import RunState
from .signals import StopRequest, Watchdog
from .train_settings import TrainSettings
from .train_step import TrainBatch
from .tune_each import runs_of
from .weight_average import make_average

_log = logging.getLogger(__name__)


def train(settings: TrainSettings) -> Path | None:
    """Trains a stitchable net as the settings say and returns the folder of the saved net.

    The output folder receives `config.yaml`, `train.log`, `log.jsonl`, `checkpoints` and, at the end, `net`. If it
    already holds a run with the same settings, that run is resumed.

    Returns:
        The folder of the net, or None where SIGTERM, SIGINT or SIGUSR1 ended the run early, with a checkpoint.

    Raises:
        SnnetError: bad settings or data, in a sentence that says what was asked and what is possible; what earlier
            runs wrote is left as it was.
    """
    check_settings(settings)
    import_plugins(settings.net.plugin)
    timeout = settings.ranks.timeout
    net = None
    with ranks(settings.compute.device, timeout) as group, Watchdog(timeout) as watchdog:
        set_up_logging(quiet=not group.first)
        folders = [RunFolder(run, group.world) for run in runs_of(settings)]
        for folder in folders:
            folder.refuse_what_is_not_ours()
        for folder in folders:
            net = _train(folder, group, watchdog)
            if net is None:
                return None
    return net


def _train(folder: RunFolder, group: Ranks, watchdog: Watchdog) -> Path | None:
    """The run of one folder (see `train`)."""
    try:
        with StopRequest() as stop:
            return Trainer(folder.settings, group, folder, stop, watchdog).run()
    except (Exception, KeyboardInterrupt) as error:
        folder.note_error(group.rank, error)
        raise
    finally:
        folder.close()


class Trainer:
    """A training run: build, resume or start, loop, finish.

    Args:
        settings: of the run.
        ranks: this process among those of the run.
        folder: where it writes.
        stop: says when a signal asked for an end.
        watchdog: notified of every step.
    """

    def __init__(
        self, settings: TrainSettings, ranks: Ranks, folder: RunFolder, stop: StopRequest, watchdog: Watchdog
    ) -> None:
        self.settings, self.ranks, self.folder, self.stop, self.watchdog = settings, ranks, folder, stop, watchdog
        seed = settings.seeds.seed
        seed_libraries(key(seed, 'build'))  # for weights that are not loaded
        self.net = build_net(settings.net, settings.data).to(ranks.device)
        check_adaptation(settings.adaptation, self.net)
        self.images = TrainImages(
            settings.data, settings.augmentation, settings.seeds.of_data, folder.path, self.net, ranks
        )
        if settings.compute.channels_last:
            self.net.to(memory_format=torch.channels_last)
        for i in range(len(self.net.anchors)):
            self.net.anchor(i).checkpointing = settings.compute.grad_checkpointing
        self.write_heads = make_fitted_heads(settings, self.net, self.images, ranks, watchdog.alive)
        choose_trained_weights(settings.net, self.net, seed)
        check_batch_norms(self.net, settings.data.batch_size)
        self.step = make_step(settings, self.net, ranks, self.images)
        self.updates = len(self.images) // settings.update.grad_accum_steps
        self.total = settings.schedule.epochs * self.updates
        self.average = make_average(settings.average, self.net)
        average = self.average.module if self.average else None
        self.grower = make_grower(
            settings.growth, self.net, self.step.optimizer, average, ranks,
            settings.schedule.epochs, self.updates, seed, settings.net.learned,
        )  # fmt: skip
        self.step.grower = self.grower
        modules = {'net': self.net, **({'average': self.average.module} if self.average else {})}
        self.state = RunState(modules, self.step.optimizer, self.step.scaler)
        self.checkpoints = Checkpoints(folder.path / 'checkpoints', settings.checkpoints.checkpoint_keep)

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
            len(self.net.stitches), len(self.net.anchors), self.settings.schedule.epochs, self.updates,
            self.settings.data.batch_size, self.ranks.world, self.ranks.device,
        )  # fmt: skip
        if self.settings.compute.compile and begin < self.total:
            compile_net(self.net, self.settings.compute, self.settings.data.batch_size, not self.ranks.first)
            self.watchdog.alive()
        if not self._loop(begin):
            return None
        if self.ranks.share(self.ranks.first and begin == self.total and is_saved(self.folder.net)):
            _log.info('%s is trained already', self.folder.net)
        elif not self.stop.lets_end(self._finish):
            return None
        return self.folder.net

    def _resume(self) -> int | None:
        """Loads the newest checkpoint that is whole; returns its step, or None if there is none."""
        values = self.ranks.share(self.checkpoints.newest() if self.ranks.first else None)
        step = 0 if values is None else values['step']
        if self.ranks.first:
            self.folder.note_attempt(step)
        self.ranks.barrier()
        if values is None:
            return None
        if self.grower is not None:
            self.grower.load_state_dict(values.get('grower', {}))
            self.step.note_parameters()
        self.checkpoints.load(step, self.state)
        self.step.skips = values.get('skips', 0)
        if self.ranks.first:
            self.folder.forget_lines_from(step)
        _log.info('%s continues after step %d of %d', self.folder.path, step, self.total)
        return step

    def _start(self) -> None:
        """Initializes the stitch layers, and the branches that are there from the start."""
        data, initialization, seed = self.settings.data, self.settings.initialization, self.settings.seeds.seed
        self.write_heads()
        if not is_whole_net(self.settings.net.from_):  # its stitch layers are the start
            initialize_layers(initialization, data, seed, self.net, self.ranks, self.watchdog.alive)
        if self.grower is not None and self.settings.growth.grow_static:
            images, _ = initialization_images(data, self.net, self.ranks, initialization.init_samples, seed)
            self.grower.grow_all(next((batch for batch, _ in images), None))
            self.step.note_parameters()
        if self.ranks.first:
            self.folder.forget_lines_from(0)
        if self.average is not None:
            self.average.set(self.net)
        self._save(0, [])

    def _loop(self, begin: int) -> bool:
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
            if saving or (step + 1) % self.settings.ranks.check_steps == 0:
                self.step.exchange.check_equal(step)
            if saving:
                last = step + 1 if self._save(step + 1, losses) else last
                saved, losses = time.monotonic(), []
            if stopping:
                progress.close()
                done = step + 1
                _log.info('stopped after step %d of %d; the same command continues after %d', done, self.total, last)
                return False
        progress.close()
        return True

    def _batches(self, begin: int) -> Iterator[tuple[int, list[TrainBatch]]]:
        """Number and batches of every step from `begin` on."""
        together, repeat = self.settings.update.grad_accum_steps, self.settings.distillation.teacher_epochs
        for epoch in range(begin // self.updates, self.settings.schedule.epochs):
            first = max(begin, epoch * self.updates)
            self.net.train()
            drawn = epoch % repeat if repeat else epoch  # repeated augmentations are answered by the stored teacher
            place = first % self.updates * together
            batches = enumerate(self.images.epoch(drawn, place), start=drawn * len(self.images) + place)
            for step in range(first, (epoch + 1) * self.updates):
                yield step, [TrainBatch(number, *batch) for number, batch in islice(batches, together)]

    def _grow(self, row: dict[str, Any]) -> None:
        """Lets branches grow after a step that has moved weights."""
        if self.grower is None or row.get('skipped'):
            return
        changes = self.grower.step()
        if changes:
            self.step.note_parameters()
            row['changes'] = [as_log_entry(change) for change in changes]

    def _note(self, progress: Progress, row: dict[str, Any]) -> None:
        """Records how a step went; ends the run if too many in a row moved nothing."""
        self.watchdog.alive()
        if self.average is not None:
            self.average.update(self.net, row['step'] + 1)
        progress.update(1, f'loss {row["loss"]:.3f}' if row['loss'] is not None else 'loss not finite')
        if row.get('skipped'):
            _log.warning('step %d was left out: the gradients of stitch %s are not finite', row['step'], row['stitch'])
        due = (row['step'] + 1) % self.settings.log_interval == 0
        if self.ranks.first and (due or 'skipped' in row or 'changes' in row):
            size = {} if self.grower is None else {'train_flops': self.grower.flops}
            self.folder.log({'epoch': row['step'] // self.updates, **row, **size})
        if self.step.skips >= self.settings.update.max_skips:
            raise SnnetError(
                f'gradients were not finite in {self.step.skips} steps in a row, the last of stitch {row["stitch"]} at '
                f'step {row["step"]}: lower --lr or set --clip-grad; the last good checkpoint is kept'
            )

    def _due(self, done: int, saved: float) -> bool:
        """Whether this rank asks for a checkpoint after `done` steps; only the first rank looks at the clock."""
        steps, minutes = self.settings.checkpoints.checkpoint_steps, self.settings.checkpoints.checkpoint_minutes
        by_steps = steps is not None and done % steps == 0
        return by_steps or (self.ranks.first and minutes is not None and time.monotonic() - saved > 60 * minutes)

    def _save(self, step: int, losses: list[float]) -> bool:
        """Writes a checkpoint; returns False on the first rank if there was no room."""
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

    def _finish(self) -> None:
        """Folds branches, gives stitches statistics where anchors moved and parameters on demand, and saves the net."""
        self.watchdog.alive()
        settings, net = self.settings, self.average.module if self.average else self.net
        merge_updates(net)
        if self.grower is not None:
            settle_grown_layers(net, settings.recalibrate, self.images, settings.seeds.seed, self.ranks)
            self.grower.fold()
        if not settings.net.freeze_anchors:
            give_statistics(net, settings.recalibrate, self.step, self.images, settings.schedule.epochs)
        adapting = self.folder.path / 'adapting'
        adapt_stitches(
            settings.adaptation, net, self.images, settings.seeds.seed, self.ranks, adapting, self.watchdog.alive
        )
        save_net(net, self.folder.net, self.images, self.ranks)
        if self.ranks.first:
            shutil.rmtree(adapting, ignore_errors=True)
        following = next_command(self.folder.net, settings.data, settings.net.plugin, self.images.undivided)
        _log.info('saved the net; next: %s', following)
