"""From losses to a seed-space gradient.

An estimator asks an *evaluator* for the losses of a population of probes, and turns them into a `SeedGradient`. An
evaluator is any callable `evaluate(seeds, eps) -> losses`: seeds int64 [n]; losses [n, 2], at theta + eps * p(seed)
and theta - eps * p(seed). A model that computes them all in one call is one; `zo_kernels.optim` has another, which
moves the parameters from probe to probe and calls a loss function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import DivergenceError
from .gradient import SeedGradient

Evaluator = Callable[[Tensor, float], Tensor]


@runtime_checkable
class Population(Protocol):
    """A loss that knows how to evaluate many probes at once."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """Losses [n, 2] at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]), without writing theta."""
        ...


class CentralDifference:
    """Central-difference random gradient estimation, CD-RGE: Chaubard and Kochenderfer, arXiv 2505.17852, eq. 2.

    gradient = 1/n * sum_i (L(theta + eps p_i) - L(theta - eps p_i)) / (2 eps) * p_i
    """

    def __call__(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> SeedGradient:
        """Estimates the gradient with the probes of `seeds` [n]. Raises as `losses` and `gradient`."""
        return self.gradient(self.losses(evaluate, seeds, eps), seeds, eps)

    def losses(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Tensor:
        """The losses the estimate needs, float64 [n, 2]. Raises ValueError if the evaluator returns another shape."""
        losses = torch.as_tensor(evaluate(seeds, eps)).detach().to("cpu", torch.float64)
        if losses.shape != (len(seeds), 2):
            raise ValueError(
                f"losses of {len(seeds)} probes must have shape ({len(seeds)}, 2), not {tuple(losses.shape)}"
            )
        return losses

    def gradient(self, losses: Tensor, seeds: Tensor, eps: float) -> SeedGradient:
        """The estimate from losses [n, 2] of the probes of seeds [n].

        Probes with a NaN or infinite loss are left out, and n counts the others. Raises DivergenceError if there is no
        other.
        """
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps must be positive and finite, not {eps}")
        valid = losses.isfinite().all(dim=1)
        count = int(valid.sum())
        if count == 0:
            raise DivergenceError(
                f"the losses of all {len(losses)} probes are NaN or infinite: lower lr or eps, or check the loss"
            )
        kept = losses[valid]
        return SeedGradient(seeds[valid], (kept[:, 0] - kept[:, 1]) / (2 * count) / eps)
