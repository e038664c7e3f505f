"""How much a convolution matters: scores from its weight and gradient, added up over an interval (DyRep, Eq. 11-15)."""

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
    """Scores of modules, by name, since the last interval began.

    Args:
        score: one of `SCORES`. 'snip', the default elsewhere, is the sum of |gradient x weight|. 'synflow', the
            published choice, is the sum of gradient x weight; it is zero for a convolution that a BatchNorm in train
            mode follows, since the loss does not depend on that weight's scale, so it ranks rounding errors.
            'grasp' needs the loss. In 'vote' each of the others but 'random' has a vote for its first choice
            ('grasp' where it has been given the loss); 'snip' decides ties.
        seed: of 'random'.

    Raises:
        SnnetError: another score.
    """

    def __init__(self, score: str, seed: int = 0) -> None:
        if score not in SCORES:
            raise SnnetError(f"a score is one of {', '.join(SCORES)}, not '{score}'")
        if score == 'synflow':
            _log.warning(
                'synflow is zero for every convolution that a BatchNorm follows in train mode: what is left of it is '
                'rounding; snip does not have this defect'
            )
        self.score, self.seed = score, seed
        self._metrics = _VOTERS if score == 'vote' else (score,)
        self._sums: dict[str, dict[str, Tensor]] = {}

    def observe(self, modules: Mapping[str, nn.Module], loss: Tensor | None = None, scale: float | None = None) -> None:
        """Adds the scores of one batch; a module whose weight has no gradient is passed over.

        Args:
            modules: by name; each has a `weight`.
            loss: with its graph, for 'grasp'; before `backward`, or after one that retains the graph.
            scale: by which mixed precision multiplied the gradients; it passes over a batch whose gradients are not
                finite, and so does this.

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
                        name: _of(metric, weights[name], grad) / (scale or 1) for name, grad in grads.items()
                    }
            if scale is not None and not all(bool(grad.isfinite().all()) for grad in grads.values()):
                return
            for metric, values in found.items():
                sums = self._sums.setdefault(metric, {})
                for name, value in values.items():
                    sums[name] = sums[name] + value if name in sums else value

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

    def load(self, values: Mapping[str, Mapping[str, float]], network: nn.Module) -> None:
        """Takes up what `values` gave, for the modules of a network."""
        self._sums = {
            metric: {name: _scalar(value, network.get_submodule(name)) for name, value in sums.items()}
            for metric, sums in values.items()
        }

    def clear(self) -> None:
        """Begins a new interval."""
        self._sums.clear()

    def _checked(self, metric: str, names: list[str]) -> dict[str, float]:
        sums = self._sums[metric]
        scores = {name: float(sums[name]) for name in names if name in sums}
        for name, value in scores.items():
            if math.isnan(value):
                raise SnnetError(
                    f'the score {metric} of {name} is not a number: its gradients since the last interval were not '
                    f'finite (with gradient scaling, give the Grower the scaler)'
                )
        return scores


def _of(metric: str, weight: Tensor, grad: Tensor) -> Tensor:
    """A score of one batch as a number in float64."""
    if metric == 'grad_norm':
        found = torch.linalg.vector_norm(grad)
    elif metric == 'snip':
        found = torch.linalg.vector_norm(grad * weight, 1)
    else:
        found = (grad * weight).sum()
    return found.to(_kind(weight))


def _grasp(weights: Mapping[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    """Minus weight times Hessian times gradient (Eq. 14)."""
    names = list(weights)
    grads = torch.autograd.grad(
        loss, [weights[name] for name in names], create_graph=True, retain_graph=True, allow_unused=True
    )
    present = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    square = torch.stack([(grad * grad.detach()).sum() for grad in present.values()]).sum()
    products = torch.autograd.grad(square, [weights[name] for name in present], retain_graph=True, allow_unused=True)
    return {
        name: -(product * weights[name]).detach().sum(dtype=_kind(weights[name]))
        for name, product in zip(present, products, strict=True)
        if product is not None
    }


def _kind(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == 'mps' else torch.float64


def _scalar(value: float, module: nn.Module) -> Tensor:
    weight = module.get_parameter('weight')
    return torch.tensor(value, dtype=_kind(weight), device=weight.device)
