"""Ways of training by name: settings that a recipe decides, under those of a file and of the command line."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
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
"""As SN-Net was published: every stitch equally often, one a rank and step, hard distillation (section 4.1)."""

SNNET: dict[str, Any] = {
    **PAPER,
    'init': 'joint',
    'stitch_per_rank': False,
    'model_ema': True,
    'recalibrate': 1000,
}
"""What stayed best on the families of docs/results/family.md: the paper's, and at its end every stitch gets BatchNorm
statistics of its own and the weights are a moving average. Transformers also want slower anchors than stitch layers
(`lr`, `stitch_lr`), which depends on the optimiser and therefore stands in the configs."""

RECIPES = {'paper': PAPER, 'snnet': SNNET}
