"""Ways of training by name: settings that a recipe decides, under those of a file and of the command line."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    'direction': 'fast_to_slow',
    'init': 'mean',
    'init_samples': 100,
    'sampler': 'uniform',
    'stitches_per_step': 1,
    'stitch_per_rank': True,
    'distill': 'hard',
    'distill_alpha': 0.5,
    'model_ema': False,
    'stitch_lr': None,
    'recalibrate': 0,
}
"""As SN-Net was published: every stitch equally often, one per rank and step, hard distillation (section 4.1)."""

SNNET: dict[str, Any] = {
    **PAPER,
    'init': 'joint',
    'stitch_per_rank': False,
    'sampler': 'flops',
    'model_ema': True,
    'recalibrate': 1000,
}
"""What gave the highest frontier on the residual family of docs/results/family.md.

Bins of FLOPs are drawn equally often, the weights are a moving average, and at the end every stitch gets BatchNorm
statistics of its own. The transformers there need uniform draws, anchors slower than stitch layers (`lr`, `stitch_lr`)
and stitches from large to small (`direction`), as their config says.
"""

OWN: dict[str, Any] = {
    **SNNET,
    'model_ema': False,
    'batch_size': 32,
    'epochs': 20,
    'warmup_epochs': 2,
    'lr': 1e-4,
    'stitch_lr': 1e-3,
    'scale': (0.35, 1.0),
    'distill': 'soft',
    'distill_topk': 0,
    'freeze_bn': True,
    'recalibrate': 200,
}
"""For some thousand images of your own: what --from implies.

Short, in small batches, and with large crops. Heads are fitted before the first step, so they move slowly, with the
anchors; stitch layers move ten times as fast. BatchNorm keeps its statistics, which the heads were fitted with: those
of small batches, of stitches among them, cost EfficientNet-Lite 20 points and more (docs/results/own_classes.md). The
teacher is the largest anchor with its fitted head.
"""

ADAPT: dict[str, Any] = {
    **SNNET,
    'direction': 'two_way',
    'stage_ends': True,
    'epochs': 0,
    'freeze_anchors': True,
    'model_ema': False,
    'init_samples': 1000,
    'teacher': 'none',
    'recalibrate': 0,
    'adapt_minutes': 10.0,
}
"""Anchors stay as they are, bit for bit: stitch layers by least squares, then each stitch adapts (`snnet.adapt`).

No step trains stitches together, so this takes minutes on a CPU. Stitches lead both ways, because it is not known
beforehand which way is better, and networks of several stages are also joined where stages end, which was best for
residual ones; `snnet keep` leaves those that are worth having (docs/adapt.md).
"""

IMPLIED = {'from_': 'own'}
"""Settings that imply a recipe where none is named."""

RECIPES = {'adapt': ADAPT, 'own': OWN, 'paper': PAPER, 'snnet': SNNET}
