"""Estimators turn losses around theta into the coefficients of a gradient. Base class and interfaces."""

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
    """A loss that can be evaluated at many probes at once."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """Losses [n, 2] at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]). Does not write theta."""
        ...


@runtime_checkable
class BatchPopulation(Population, Protocol):
    """A population with a batch of several micro-batches, which processes can share out.

    parts: number of micro-batches. scored: number of scored positions of the whole batch. A loss is the sum of
    `part_nats` over the parts, in order, divided by `scored`.
    """

    parts: int
    scored: int

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Summed losses of one micro-batch, float64 [n, 2], at the points of `population_loss`."""
        ...


class Evaluator(ABC):
    """Evaluates the loss L at points around theta. A subclass needs only `pairs`.

    Seeds are int64 [n]; losses are float64 tensors of the shape that each method names.
    """

    @abstractmethod
    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        """[n, 2]: L(theta + eps p(seeds[i])) and L(theta - eps p(seeds[i]))."""

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        """[n]: L(theta + eps p(seeds[i])). By default the first column of `pairs`."""
        return self.pairs(seeds, eps)[:, 0]

    def clean(self) -> float:
        """L(theta). By default a loss of `pairs` with eps = 0."""
        return float(self.pairs(torch.zeros(1, dtype=torch.int64), 0.0)[0, 0])

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        """[n, 2, 2]: L(theta +- eps p(seeds[i]) +- eps p(others[i])), where [i, 0, 1] has the signs + and -.

        Only 2-SPSA needs them. By default raises NotImplementedError.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not implement corners(), which 2-SPSA needs: add it or use another estimator"
        )


class Losses(NamedTuple):
    """The losses of a step. own: float64 [n, k], k losses per probe. clean: L(theta), if the estimator needs it."""

    own: Tensor
    clean: float | None = None


@dataclass(frozen=True)
class Estimate:
    """An estimate of the gradient, with everything that an update needs.

    seeds: int64 [n], seeds of the step's probes.
    coeffs: float [n], coefficient of each probe, in units of loss per unit of parameter; NaN for a probe left out
        because one of its losses is not finite. Estimators give float64. Optimizers round to float32, since the
        journal stores and ranks send four bytes per probe. If groups have different eps, coefficients are those of the
        first group that was moved.
    losses: float64, of the shape that each estimator names; stacked if there are several micro-batches.
    distribution: distribution of the probes' elements.
    step: number of the step, from 0; set by the optimizer.
    eps: the eps used for each parameter group; set by the optimizer.
    """

    seeds: Tensor
    coeffs: Tensor
    losses: Tensor
    distribution: str = "rademacher"
    step: int = 0
    eps: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """Mean of the finite losses; NaN if there are none."""
        return float(self.losses[self.losses.isfinite()].mean())

    @property
    def skipped(self) -> int:
        """Number of probes left out."""
        return int(self.coeffs.isnan().sum())

    @property
    def gradient(self) -> SeedGradient:
        """The gradient, with one row per probe that was not left out."""
        valid = ~self.coeffs.isnan()
        return SeedGradient(self.seeds[valid], self.coeffs[valid], self.distribution)

    def round_to_float32(self) -> Estimate:
        """A copy with float32 coefficients. Raises DivergenceError if one overflows float32."""
        coeffs = self.coeffs.float()
        if bool(coeffs.isinf().any()):
            raise DivergenceError("a coefficient of the gradient overflows float32: lower lr or eps, or check the loss")
        return replace(self, coeffs=coeffs)


class Estimator(ABC):
    """Estimates the gradient as 1/(n s) * sum_i slope_i p_i, where slope_i estimates the derivative along p_i.

    s is the variance of the probes' elements. E[(g.p) p] = s g, so the estimate is unbiased to first order in eps.
    A subclass implements `measure`, which takes the losses, and `slopes`, which computes the slopes from them.
    """

    name: ClassVar[str]
    """Name on the command line."""

    probes_at_once: ClassVar[int] = 1
    """The most probes by which a point where a loss is taken differs from theta."""

    def __call__(self, evaluate: Evaluator, seeds: Tensor, eps: float, distribution: str = "rademacher") -> Estimate:
        """Estimates the gradient with the probes of seeds [n], which `evaluate` draws from `distribution`.

        A probe with a NaN or infinite loss or slope is left out, and n counts the others. Raises DivergenceError if all
        probes are left out or L(theta) is not finite. Raises ValueError if eps is not positive and finite, the
        distribution is unknown, there are no seeds, or the losses have the wrong shape.
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
        """Number of forward passes of a step with `probes` probes."""

    @abstractmethod
    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        """Takes the losses of a step. eps is positive and finite."""

    @abstractmethod
    def slopes(self, measured: Losses, eps: float) -> Tensor:
        """The slope along each probe: float64 [n]. The value does not matter where a loss is not finite."""


def check_losses(losses: Tensor, *shape: int) -> Tensor:
    """The losses in float64 on the CPU. Raises ValueError unless they have this shape."""
    losses = torch.as_tensor(losses).detach().to("cpu", torch.float64)
    if losses.shape != shape:
        raise ValueError(f"losses of {shape[0]} probes must have shape {shape}, not {tuple(losses.shape)}")
    return losses


def check_clean(loss: float) -> None:
    """Raises DivergenceError if L(theta) is not finite."""
    if not math.isfinite(loss):
        raise DivergenceError(f"the loss at the parameters themselves is {loss}: lower lr, or check the loss")
