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
}
"""As SN-Net was published: every stitch equally often, one a rank and step, hard distillation (section 4.1)."""

RECIPES = {'paper': PAPER}
