"""Training: every step draws a stitch, runs it, and moves what took part (SN-Net, Algorithm 1)."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .build import create_stitchable_net
from .checkpoint import Checkpoint
from .config import TrainSettings, to_yaml
from .data import TrainImages, initialisation_images
from .distill import DistillationLoss, make_teacher
from .distributed import Ranks, ranks
from .errors import SnnetError
from .files import write_text
from .log import JsonLines, Progress, set_up_logging
from .modes import autocast
from .net import StitchableNet
from .optim import make_optimizer, make_schedule
from .plugins import import_plugins
from .protect import AnchorTeachers
from .sample import make_sampler
from .seeds import generator, key, seed_libraries
from .solve import METHODS, initialise, kaiming
from .sums import LayerFit

_log = logging.getLogger(__name__)


def train(settings: TrainSettings) -> Path:
    """Trains a stitchable net as the settings say and returns the folder of the saved net.

    The output folder gets `config.yaml`, `train.log`, `log.jsonl`, `checkpoint.pt` after each epoch, and `net`.

    Raises:
        SnnetError: with a sentence that says what was asked and what is possible; nothing has been written then.
    """
    _check(settings)
    import_plugins(settings.plugin)
    with ranks(settings.device) as group:
        set_up_logging(quiet=not group.first)
        trainer = Trainer(settings, group)
        return trainer.run()


class Trainer:
    """A training run.

    Args:
        settings: what to do.
        ranks: this process among those of the run.
    """

    def __init__(self, settings: TrainSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.output = Path(settings.output)
        seed_libraries(key(settings.seed, 'build'))  # for weights that are not loaded
        self.net = _build_net(settings).to(ranks.device)
        self.images = TrainImages(settings, self.net, ranks)
        self.criterion, self.mixup = self._make_criterion()
        if settings.freeze_anchors:
            self.net.anchors.requires_grad_(False)
        for i in range(len(self.net.stitch_layers) if settings.stitch_rank else 0):
            self.net.layer(i).start_update(settings.stitch_rank, generator(settings.seed, 'update', i))
        self.optimizer = make_optimizer(self.net, settings)
        self.schedule = make_schedule(self.optimizer, settings, len(self.images))
        trainable = [i for i, s in enumerate(self.net.stitches) if s.layers or not settings.freeze_anchors]
        self.sampler = make_sampler(settings, self.net, trainable)
        half = settings.amp and settings.amp_dtype == 'float16'
        self.protect = AnchorTeachers(self.net, settings.protect_anchors) if settings.protect_anchors else None
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        self.checkpoint = Checkpoint(self.output / 'checkpoint.pt', self.net, self.optimizer, self.scaler)
        self.lines = JsonLines(self.output / 'log.jsonl')

    def run(self) -> Path:
        """Trains from where the checkpoint left off, or from the start, to the end; returns the folder of the net."""
        first_epoch = self._resume() if self.settings.resume else self._start()
        steps = len(self.images)
        _log.info(
            '%d stitches of %d anchors, %d epochs of %d steps, batches of %d on %d processes (%s)',
            len(self.net.stitches), len(self.net.anchors), self.settings.epochs, steps,
            self.settings.batch_size, self.ranks.world, self.ranks.device,
        )  # fmt: skip
        forward = self._wrap()
        progress = Progress(self.settings.epochs * steps, 'steps', first_epoch * steps, quiet=not self.ranks.first)
        for epoch in range(first_epoch, self.settings.epochs):
            self._set_modes()
            for step, (images, targets) in enumerate(self.images.epoch(epoch), start=epoch * steps):
                row = self._step(forward, step, images.to(self.ranks.device), targets.to(self.ranks.device))
                progress.update(1, f'loss {row["loss"]:.3f}')
                if self.ranks.first and (step + 1) % self.settings.log_interval == 0:
                    self.lines.append({'epoch': epoch, **row})
            if self.ranks.first:
                self.checkpoint.save(asdict(self.settings), epoch + 1, (epoch + 1) * steps)
            self.ranks.barrier()
        progress.close()
        if self.ranks.first:
            self.net.eval()
            self.net.save_pretrained(self.output / 'net')
            _log.info('saved the net; next: %s', self._next_command())
        return self.output / 'net'

    def _step(self, forward: nn.Module, step: int, images: Tensor, targets: Tensor) -> dict[str, Any]:
        """One update of the weights that the drawn stitch uses."""
        seed_libraries(key(self.settings.seed, 'step', step, self.ranks.rank))  # mixup, drop path and dropout
        self.schedule.step_update(step)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        stitch = self.sampler(step, self.ranks.rank)
        self.optimizer.zero_grad(set_to_none=True)  # zeros would let the optimiser move weights that took no part
        with autocast(self.settings.amp, self.settings.amp_dtype, self.ranks.device):
            logits = forward(images, stitch=stitch)
            loss = self.criterion(images, logits, targets)
            if self.protect is not None:
                loss = self.protect(stitch, images, logits, loss)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SnnetError(
                f'the loss of stitch {stitch} ({self.net.stitches[stitch]}) is {value} at step {step}: lower --lr or '
                f'set --clip-grad; {self.checkpoint.path} holds the state after the last whole epoch, if there was one'
            )
        self.scaler.scale(loss).backward()
        if self.settings.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            moved = [p for p in self.net.parameters() if p.grad is not None]
            dispatch_clip_grad(moved, self.settings.clip_grad, mode=self.settings.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return {'step': step, 'stitch': stitch, 'loss': value, 'lr': rates[0], 'stitch_lr': rates[-1]}

    def _start(self) -> int:
        """Initialises the stitch layers and opens the output folder."""
        fits = self._initialise()
        if self.ranks.first:
            self.output.mkdir(parents=True)
            write_text(self.output / 'config.yaml', to_yaml(self.settings))
            set_up_logging(self.output / 'train.log')
        for fit in fits:
            _log.debug(
                'stitch layer %d: residual %.4f, rank %d of %d, condition %.1e, %d rows',
                fit.layer, fit.residual, fit.rank, fit.channels, fit.condition, fit.rows,
            )  # fmt: skip
        if fits:
            residuals = [fit.residual for fit in fits]
            _log.info(
                'least squares: residuals %.3f to %.3f over %d stitch layers, worst condition %.1e',
                min(residuals), max(residuals), len(fits), max(fit.condition for fit in fits),
            )  # fmt: skip
        return 0

    def _initialise(self) -> list[LayerFit]:
        """Least squares, with a report a layer, or Kaiming's random choice."""
        if self.settings.init == 'kaiming':
            kaiming(self.net, generator(self.settings.seed, 'kaiming'))
            return []
        loader, share = initialisation_images(self.settings, self.net, self.ranks)
        reduce = self.ranks.all_reduce if self.ranks.world > 1 else None
        progress = Progress(share, 'images for least squares', quiet=not self.ranks.first)
        fits = initialise(
            self.net, loader, max(1, share), self.settings.init, reduce, progress.update, self.settings.init_ridge
        )
        progress.close()
        return fits

    def _resume(self) -> int:
        """Takes up the state of the checkpoint; returns the next epoch."""
        epoch, steps = self.checkpoint.load(asdict(self.settings))
        if self.ranks.first:
            set_up_logging(self.output / 'train.log')
            self.lines.rewrite([row for row in self.lines.read() if row['step'] < steps])
        _log.info('resuming %s after epoch %d of %d', self.output, epoch, self.settings.epochs)
        return epoch

    def _next_command(self) -> str:
        """How the net is evaluated on the data it was trained on."""
        words = ['python eval_stitches.py', str(self.output / 'net')]
        words += ['--plugin', *self.settings.plugin] if self.settings.plugin else []
        words += ['--dataset', self.settings.dataset] if self.settings.dataset else []
        words += ['--data-dir', self.settings.data_dir] if self.settings.data_dir else []
        return ' '.join(words)

    def _wrap(self) -> nn.Module:
        if self.ranks.world == 1:
            return self.net
        # most parameters take no part in a step: they must get no gradient rather than wait for one
        return DistributedDataParallel(self.net, find_unused_parameters=True)

    def _set_modes(self) -> None:
        self.net.train()
        if self.settings.freeze_anchors:
            self.net.anchors.eval()  # frozen means batch-norm statistics and drop path too

    def _make_criterion(self) -> tuple[nn.Module, Mixup | None]:
        settings = self.settings
        base: nn.Module = nn.CrossEntropyLoss()
        mixup = None
        if settings.mixup > 0 or settings.cutmix > 0:
            mixup = Mixup(
                settings.mixup, settings.cutmix, prob=settings.mixup_prob, switch_prob=settings.mixup_switch_prob,
                label_smoothing=settings.smoothing, num_classes=self.net.num_classes,
            )  # fmt: skip
            base = SoftTargetCrossEntropy()
        elif settings.smoothing > 0:
            base = LabelSmoothingCrossEntropy(settings.smoothing)
        teacher = None if settings.teacher == 'none' else make_teacher(settings.teacher, self.net)
        loss = DistillationLoss(base, teacher, settings.distill, settings.distill_alpha, settings.distill_tau)
        return loss.to(self.ranks.device), mixup


def _build_net(settings: TrainSettings) -> StitchableNet:
    return create_stitchable_net(
        settings.anchors,
        pretrained=settings.pretrained,
        num_classes=settings.num_classes,
        img_size=settings.img_size,
        window=settings.window,
        step=settings.step,
        nearest=settings.nearest,
        direction=settings.direction,
        drop_path_rate=settings.drop_path,
    )


def _check(settings: TrainSettings) -> None:
    """Refuses at once what would fail later."""
    output = Path(settings.output)
    if settings.resume and not (output / 'checkpoint.pt').is_file():
        raise SnnetError(f"nothing to resume: '{output}' holds no checkpoint.pt")
    if not settings.resume and output.exists():
        raise SnnetError(f"the output folder '{output}' exists: continue it with --resume, or name another --output")
    choices = {'init': (*METHODS, 'kaiming'), 'clip_mode': ('norm', 'value', 'agc')}
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise SnnetError(f"{name} is one of {', '.join(allowed)}, not '{getattr(settings, name)}'")
    autocast(settings.amp, settings.amp_dtype, torch.device('cpu'))
    for name, least in (
        ('batch_size', 1),
        ('epochs', 0),
        ('init_samples', 1),
        ('log_interval', 1),
        ('stitch_rank', 0),
        ('stitches_per_step', 1),
    ):
        if getattr(settings, name) < least:
            raise SnnetError(f'{name} is at least {least}, not {getattr(settings, name)}')
    if (settings.mixup > 0 or settings.cutmix > 0) and settings.batch_size % 2:
        raise SnnetError(f'mixup and cutmix pair the images of a batch: batch_size {settings.batch_size} is odd')
    if not settings.anchors:
        raise SnnetError('name the networks to stitch with --anchors, such as deit_tiny,deit_small,deit_base')
