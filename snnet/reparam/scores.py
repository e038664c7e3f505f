"""How much a convolution matters: scores from its weight and gradient, averaged over an interval (DyRep, Eq. 11-15)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.seeds import key

_log = logging.getLogger(__name__)

SCORES = ('random', 'grad_norm', 'snip', 'grasp', 'synflow', 'vote')
_VOTERS = ('snip', 'grad_norm', 'synflow', 'grasp')


class Scores:
    """Mean scores of modules, by name, over the batches of an interval in which each took part.

    With theta the weight of a module and g the gradient of the loss L with respect to it, the score of a batch is

        random      a random number                          (Eq. 11)
        grad_norm   || g ||_2                                (Eq. 12)
        snip        sum_i | g_i theta_i |                    (Eq. 13)
        grasp       - sum_i (H g)_i theta_i, H the Hessian   (Eq. 14)
        synflow     sum_i g_i theta_i                        (Eq. 15)

    In a stitchable net a batch runs one stitch, so the mean does not favor modules that are drawn more often.

    Args:
        score: one of `SCORES`. 'snip' is the default elsewhere. 'synflow', the published choice, is zero for a
            convolution that a BatchNorm in train mode follows, because the loss does not depend on that weight's
            scale; what it ranks there are rounding errors. 'grasp' needs the loss. In 'vote' each of the others
            except 'random' votes for its first choice ('grasp' if it was given the loss); 'snip' decides ties.
        seed: of 'random'.

    Raises:
        SnnetError: another score.
    """

    def __init__(self, score: str, seed: int = 0) -> None:
        if score not in SCORES:
            raise SnnetError(f"score must be one of {', '.join(SCORES)}, not '{score}'")
        if score == 'synflow':
            _log.warning(
                'synflow is zero for every convolution that a BatchNorm follows in train mode: what is left of it is '
                'rounding; snip does not have this defect'
            )
        self.score, self.seed = score, seed
        self._metrics = _VOTERS if score == 'vote' else (score,)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._counts: dict[str, dict[str, int]] = {}

    def observe(self, modules: Mapping[str, nn.Module], loss: Tensor | None = None, scale: float | None = None) -> None:
        """Adds the scores of one batch; a module whose weight has no gradient took no part in it.

        Args:
            modules: by name; each has a `weight`.
            loss: with its graph, for 'grasp'; before `backward`, or after one that retains the graph.
            scale: by which mixed precision multiplied the gradients; a batch whose gradients are not finite is then
                skipped, as mixed precision skips it.

        Raises:
            SnnetError: 'grasp' without a loss.
        """
        if self.score == 'random':
            return
        if self.score == 'grasp' and loss is None:
            raise SnnetError("'grasp' needs the loss with its graph: grower.observe(loss) before loss.backward()")
        weights = {name: module.get_parameter('weight') for name, module in modules.items()}
        found: dict[str, dict[str, Tensor]] = {}
        if loss is not None and 'grasp' in self._metrics:
            found['grasp'] = _grasp(weights, loss)
        with torch.no_grad():
            grads = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
            for metric in self._metrics:
                if metric != 'grasp':
                    found[metric] = {
                        name: score_of_batch(metric, weights[name], grad) / (scale or 1) for name, grad in grads.items()
                    }
            if scale is not None and not all(bool(grad.isfinite().all()) for grad in grads.values()):
                return
            for metric, values in found.items():
                sums, counts = self._sums.setdefault(metric, {}), self._counts.setdefault(metric, {})
                for name, value in values.items():
                    sums[name] = sums[name] + value if name in sums else value
                    counts[name] = counts.get(name, 0) + 1

    def ranked(self, names: list[str], interval: int) -> list[str]:
        """Names from the highest score to the lowest; those without a score are left out.

        Raises:
            SnnetError: a score that is not a number; names the module.
        """
        if self.score == 'random':
            return sorted(names, key=lambda name: key(self.seed, f'score of {name}', interval))
        table = {metric: self._checked(metric, names) for metric in self._metrics if metric in self._sums}
        if self.score != 'vote':
            scores = table.get(self.score, {})
            return sorted(scores, key=lambda name: -scores[name])
        first = [max(scores, key=scores.__getitem__) for scores in table.values() if scores]
        snip = table.get('snip', {})
        return sorted(snip, key=lambda name: (-first.count(name), -snip[name]))

    def values(self) -> dict[str, dict[str, float]]:
        """The sums by metric and name, fit for JSON."""
        return {metric: {name: float(v) for name, v in sums.items()} for metric, sums in self._sums.items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """The numbers of batches that the sums are of, by metric and name."""
        return {metric: dict(counts) for metric, counts in self._counts.items()}

    def load(
        self,
        values: Mapping[str, Mapping[str, float]],
        counts: Mapping[str, Mapping[str, int]] | None,
        network: nn.Module,
    ) -> None:
        """Continues from what `values` and `counts` gave, for the modules of a network.

        States of earlier versions have no counts; their sums then count as one batch.
        """
        self._counts = {
            metric: {name: (counts or {}).get(metric, {}).get(name, 1) for name in sums}
            for metric, sums in values.items()
        }
        self._sums = {
            metric: {name: _scalar(value, network.get_submodule(name)) for name, value in sums.items()}
            for metric, sums in values.items()
        }

    def clear(self) -> None:
        """Starts a new interval."""
        self._sums.clear()
        self._counts.clear()

    def _checked(self, metric: str, names: list[str]) -> dict[str, float]:
        sums, counts = self._sums[metric], self._counts[metric]
        scores = {name: float(sums[name]) / counts[name] for name in names if name in sums}
        for name, value in scores.items():
            if math.isnan(value):
                raise SnnetError(
                    f'the score {metric} of {name} is not a number: its gradients since the last interval were not '
                    f'finite (with gradient scaling, give the Grower the scaler)'
                )
        return scores


def score_of_batch(metric: str, weight: Tensor, grad: Tensor) -> Tensor:
    """The score of one batch as a scalar tensor (Eq. 12, 13 and 15)."""
    if metric == 'grad_norm':
        found: Tensor = torch.linalg.vector_norm(grad)
    elif metric == 'snip':
        found = torch.linalg.vector_norm(grad * weight, 1)
    else:
        found = (grad * weight).sum()
    return found.to(_widest_type(weight))


def _grasp(weights: Mapping[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    """Minus the sum of weight times Hessian times gradient (Eq. 14).

    H g is the gradient of g^T g* with respect to the weights, with g* = g held constant.
    """
    names = list(weights)
    grads = torch.autograd.grad(
        loss, [weights[name] for name in names], create_graph=True, retain_graph=True, allow_unused=True
    )
    present = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    square = torch.stack([(grad * grad.detach()).sum() for grad in present.values()]).sum()
    products = torch.autograd.grad(square, [weights[name] for name in present], retain_graph=True, allow_unused=True)
    return {
        name: -(product * weights[name]).detach().sum(dtype=_widest_type(weights[name]))
        for name, product in zip(present, products, strict=True)
        if product is not None
    }


def _widest_type(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == 'mps' else torch.float64


def _scalar(value: float, module: nn.Module) -> Tensor:
    weight = module.get_parameter('weight')
    return torch.tensor(value, dtype=_widest_type(weight), device=weight.device)
