"""From losses around theta to an estimate of the gradient: the interfaces, and what all estimators share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
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
    """Evaluates the loss L at points around theta. A subclass needs `pairs` only.

    Seeds are int64 [n]; losses are float64.
    """

    @abstractmethod
    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        """[n, 2]: L(theta + eps p(seeds[i])) and L(theta - eps p(seeds[i]))."""

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        """[n]: L(theta + eps p(seeds[i])). Unless overridden, half of `pairs`."""
        return self.pairs(seeds, eps)[:, 0]

    def clean(self) -> float:
        """L(theta). Unless overridden, a pair with eps = 0."""
        return float(self.pairs(torch.zeros(1, dtype=torch.int64), 0.0)[0, 0])

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        """[n, 2, 2]: L(theta +- eps p(seeds[i]) +- eps p(others[i])); [i, 0, 1] is + then -.

        Only 2-SPSA asks for them. Raises NotImplementedError unless overridden.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no corners, which 2-SPSA needs: implement them, or use another estimator"
        )


class Losses(NamedTuple):
    """The losses of a step. own: float64 [n, k], k of each probe. clean: L(theta), where the estimator asks for it."""

    own: Tensor
    clean: float | None = None


@dataclass(frozen=True)
class Estimate:
    """An estimate of the gradient: all that a step measures, and all that an update needs.

    seeds: int64 [n], of the step's probes. coeffs: float [n], how much of each probe the gradient holds, in units of
    loss per unit of parameter; NaN where a probe was left out, because one of its losses was not finite. Estimators
    give float64, optimizers round to float32: four bytes a probe are what the journal keeps and replicas send.
    losses: float64, of a shape that each estimator names; of several micro-batches, stacked. distribution: of the
    probes' elements.

    An optimizer adds step: its number, from 0; and eps: of each parameter group, as it was used. Coefficients are those
    of the first group that was moved.
    """

    seeds: Tensor
    coeffs: Tensor
    losses: Tensor
    distribution: str = "rademacher"
    step: int = 0
    eps: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """Mean of the finite losses; NaN if there is none."""
        return float(self.losses[self.losses.isfinite()].mean())

    @property
    def skipped(self) -> int:
        """Probes left out."""
        return int(self.coeffs.isnan().sum())

    @property
    def gradient(self) -> SeedGradient:
        """The table: the rows of the probes that were not left out."""
        valid = ~self.coeffs.isnan()
        return SeedGradient(self.seeds[valid], self.coeffs[valid], self.distribution)

    def round_to_float32(self) -> Estimate:
        """The same with float32 coefficients. Raises DivergenceError if one is beyond the range of float32."""
        coeffs = self.coeffs.float()
        if bool(coeffs.isinf().any()):
            raise DivergenceError("a coefficient of the gradient is beyond float32: lower lr or eps, or check the loss")
        return replace(self, coeffs=coeffs)


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
        if clean is not None:
            check_clean(clean)
        slopes = self.slopes(measured, eps)
        valid = own.isfinite().all(dim=1) & slopes.isfinite()
        count = int(valid.sum())
        if count == 0:
            raise DivergenceError(
                f"the losses of all {len(seeds)} probes are NaN or infinite: lower lr or eps, or check the loss"
            )
        coeffs = torch.where(valid, slopes / (count * s), math.nan)
        losses = own if clean is None else torch.cat([own.flatten(), own.new_tensor([clean])])
        return Estimate(seeds.cpu(), coeffs, losses, distribution)

    @abstractmethod
    def forwards(self, probes: int) -> int:
        """Forward passes of a step with that many probes."""

    @abstractmethod
    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        """The losses of a step; eps is positive and finite."""

    @abstractmethod
    def slopes(self, measured: Losses, eps: float) -> Tensor:
        """The slope along each probe: float64 [n], of any value where a loss is not finite."""


def check_losses(losses: Tensor, *shape: int) -> Tensor:
    """An evaluator's losses in float64 on the CPU. Raises ValueError if their shape is another."""
    losses = torch.as_tensor(losses).detach().to("cpu", torch.float64)
    if losses.shape != shape:
        raise ValueError(f"losses of {shape[0]} probes must have shape {shape}, not {tuple(losses.shape)}")
    return losses


def check_clean(loss: float) -> None:
    """Raises DivergenceError if L(theta) is not finite."""
    if not math.isfinite(loss):
        raise DivergenceError(f"the loss at the parameters themselves is {loss}: lower lr, or check the loss")
