"""The settings of the heads that a run begins with."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option


@dataclass
class HeadSettings:
    """How classifiers are fitted before training (with --from)."""

    fit_heads: bool = option(True, 'fit a classifier for each anchor, where its own is new or does worse')
    head_samples: int = option(20_000, 'most training images to fit classifiers with', least=2)
