"""What an estimator asks for and what it gives: from losses around theta to a seed-space gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..distributions import variance
from ..errors import DivergenceError
from ..gradient import SeedGradient


@runtime_checkable
class Population(Protocol):
    """A loss that knows how to evaluate many probes at once."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """Losses [n, 2] at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]), without writing theta."""
        ...


@runtime_checkable
class BatchPopulation(Population, Protocol):
    """A population whose batch consists of micro-batches, of which several processes may each evaluate some.

    parts: how many. scored: positions of the whole batch that are scored; a loss is the sum over the parts, in their
    order, divided by it.
    """

    parts: int
    scored: int

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Sums over one micro-batch, float64 [n, 2], at the points of `population_loss`."""
        ...


class Evaluator(ABC):
    """The losses around theta, L(theta + ...); seeds are int64 [n], the results float64."""

    @abstractmethod
    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        """[n, 2]: L(theta + eps p(seeds[i])) and L(theta - eps p(seeds[i]))."""

    @abstractmethod
    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        """[n]: L(theta + eps p(seeds[i]))."""

    @abstractmethod
    def clean(self) -> float:
        """L(theta)."""

    @abstractmethod
    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        """[n, 2, 2]: L(theta +- eps p(seeds[i]) +- eps p(others[i])); [i, 0, 1] is + then -."""


class Measured(NamedTuple):
    """The losses of a step. own: float64 [n, k], k of each probe. clean: L(theta), where the estimator asks for it."""

    own: Tensor
    clean: float | None = None


class Estimate(NamedTuple):
    """A gradient, all losses it was made of (float64, of a shape each estimator names) and the probes left out."""

    gradient: SeedGradient
    losses: Tensor
    skipped: int


class Estimator(ABC):
    """gradient = 1/(n s) * sum_i slope_i p_i, with slope_i the derivative of the loss along p_i, or what stands for it.

    s is the variance of the probes' elements: E[(g.p) p] = s g, so the estimate is unbiased to first order in eps.
    A subclass says which losses it needs (`measure`) and what they say of each slope (`slopes`).
    """

    name: ClassVar[str]
    """By which the command line knows it."""

    probes_at_once: ClassVar[int] = 1
    """By how many probes a point that it asks for is away from theta."""

    def __call__(self, evaluate: Evaluator, seeds: Tensor, eps: float, distribution: str = "rademacher") -> Estimate:
        """Estimates the gradient with the probes of seeds [n], which `evaluate` draws from `distribution`.

        A probe with a NaN or infinite loss (or slope) is left out, and n counts the others. Raises DivergenceError if
        there is no other or L(theta) is not finite, and ValueError for an eps that is not positive and finite, an
        unknown distribution, no seeds, or losses of another shape than `Evaluator` says.
        """
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps must be positive and finite, not {eps}")
        if seeds.dim() != 1 or len(seeds) == 0:
            raise ValueError(f"seeds must be one-dimensional with at least one seed, not of shape {tuple(seeds.shape)}")
        s = variance(distribution)
        own, clean = measured = self.measure(evaluate, seeds, eps)
        if clean is not None and not math.isfinite(clean):
            raise DivergenceError(f"the loss at the parameters themselves is {clean}: lower lr, or check the loss")
        slopes = self.slopes(measured, eps)
        valid = own.isfinite().all(dim=1) & slopes.isfinite()
        count = int(valid.sum())
        if count == 0:
            raise DivergenceError(
                f"the losses of all {len(seeds)} probes are NaN or infinite: lower lr or eps, or check the loss"
            )
        gradient = SeedGradient(seeds.cpu()[valid], slopes[valid] / (count * s), distribution)
        losses = own if clean is None else torch.cat([own.flatten(), own.new_tensor([clean])])
        return Estimate(gradient, losses, len(seeds) - count)

    @abstractmethod
    def forwards(self, probes: int) -> int:
        """Forward passes of a step with that many probes."""

    @abstractmethod
    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Measured:
        """The losses of a step; eps is positive and finite."""

    @abstractmethod
    def slopes(self, measured: Measured, eps: float) -> Tensor:
        """The slope along each probe: float64 [n], of any value where a loss is not finite."""


def check_losses(losses: Tensor, *shape: int) -> Tensor:
    """An evaluator's losses in float64 on the CPU. Raises ValueError if their shape is another."""
    losses = torch.as_tensor(losses).detach().to("cpu", torch.float64)
    if losses.shape != shape:
        raise ValueError(f"losses of {shape[0]} probes must have shape {shape}, not {tuple(losses.shape)}")
    return losses
