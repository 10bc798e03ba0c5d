"""Losses around theta, as estimators ask for them: of a closure, loss by loss, or of a population, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..estimators import BatchPopulation, Evaluator, Population
from ..perturb import Displacement, Perturbation

Closure = Callable[[], "Tensor | float"]


class ClosureEvaluator(Evaluator):
    """Moves the parameters from point to point and calls a closure at each.

    theta: whose step has begun. eps: of each segment, the first of which estimators ask for.
    """

    def __init__(self, closure: Closure, theta: Perturbation, eps: Sequence[float]) -> None:
        self._closure = closure
        self._theta = theta
        self._plus, self._minus = list(eps), [-e for e in eps]

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        return self._at([[(seed, alphas)] for seed in seeds.tolist() for alphas in self._both]).view(-1, 2)

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        return self._at([[(seed, self._plus)] for seed in seeds.tolist()])

    def clean(self) -> float:
        return float(self._at([[]]))

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        pairs = zip(seeds.tolist(), others.tolist(), strict=True)
        points = [[(seed, a), (other, b)] for seed, other in pairs for a in self._both for b in self._both]
        return self._at(points).view(-1, 2, 2)

    @property
    def _both(self) -> tuple[list[float], list[float]]:
        return self._plus, self._minus

    def _at(self, points: Sequence[Sequence[Displacement]]) -> Tensor:
        losses = []
        for point in points:
            if point:
                self._theta.move(*point)
            else:
                self._theta.leave()
            losses.append(_as_number(self._closure()))
        return torch.stack(losses).cpu()


class PopulationEvaluator(Evaluator):
    """Asks a population, which knows Rademacher probes and one eps for all parameters."""

    batched: BatchPopulation | None
    """The population, if it consists of several micro-batches."""

    def __init__(self, population: Population, theta: Perturbation, eps: Sequence[float]) -> None:
        if len(set(eps)) > 1:
            raise ValueError("a population is evaluated with one eps, but the groups differ in theirs")
        if theta.distribution != "rademacher":
            raise ValueError(f"a population is evaluated at rademacher probes, not at {theta.distribution} ones")
        self._population = population
        self._theta = theta
        self._eps = list(eps)
        self.batched = population if isinstance(population, BatchPopulation) and population.parts > 1 else None

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Float64 [n, 2]: sums over one micro-batch of a `batched` population."""
        assert self.batched is not None
        self._theta.leave()
        return self.batched.part_nats(part, seeds, eps)

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        self._theta.leave()
        return self._population.population_loss(seeds, eps)

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        return self.pairs(seeds, eps)[:, 0]

    def clean(self) -> float:
        return float(self.pairs(torch.zeros(1, dtype=torch.int64), 0.0)[0, 0])

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        # Signs of the second probe by moving theta, those of the first by the population.
        losses = [
            [self._beside(seed, other, alphas) for alphas in (self._eps, [-e for e in self._eps])]
            for seed, other in zip(seeds, others.tolist(), strict=True)
        ]
        return torch.stack([torch.stack(pair, dim=-1) for pair in losses])

    def _beside(self, seed: Tensor, other: int, alphas: Sequence[float]) -> Tensor:
        """Losses [2] at theta + alphas * p(other) with + and - of the probe."""
        self._theta.move((other, alphas))
        return self._population.population_loss(seed[None], self._eps[0])[0]


def _as_number(loss: Tensor | float) -> Tensor:
    if not isinstance(loss, Tensor):
        return torch.tensor(loss, dtype=torch.float64)
    if loss.numel() != 1:
        raise ValueError(f"the closure must return one loss, not a tensor of shape {tuple(loss.shape)}")
    return loss.detach().reshape(()).to(torch.float64, copy=True)  # a copy: it may be reused
