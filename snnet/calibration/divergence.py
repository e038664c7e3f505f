"""How far the probabilities of two answers lie apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def divergence(found: Tensor, wanted: Tensor, several_labels: bool) -> Tensor:
    """The Kullback-Leibler divergence of probabilities from those wanted, split by class, in nats: (n, classes).

    The sum over the classes is the divergence of an image. Where images have several labels, a class is a yes or no by
    itself, and the divergence is that of two Bernoulli distributions; elsewhere the classes share one distribution.

    Args:
        found: logits (n, classes).
        wanted: logits (n, classes).
        several_labels: whether each logit says yes or no to its class by itself.
    """
    if not several_labels:
        return F.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction='none', log_target=True)
    yes, no = (
        F.kl_div(F.logsigmoid(sign * found), F.logsigmoid(sign * wanted), reduction='none', log_target=True)
        for sign in (1, -1)
    )
    return torch.add(yes, no)  # p log(p / q) + (1 - p) log((1 - p) / (1 - q))
