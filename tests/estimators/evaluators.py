"""Evaluators of a written-down loss, and of written-down losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from zo_kernels.distributions import draw
from zo_kernels.estimators import Evaluator
from zo_kernels.philox import probe_seeds


def seeds_of(n: int) -> Tensor:
    return torch.from_numpy(probe_seeds(3, 0, n))


def probes(seeds: Tensor, numel: int, distribution: str = "rademacher") -> Tensor:
    """The probes themselves: float64 [n, numel]."""
    return _probes(tuple(seeds.tolist()), numel, distribution)


@cache
def _probes(seeds: tuple[int, ...], numel: int, distribution: str) -> Tensor:
    return torch.stack([torch.from_numpy(draw(distribution, numel, seed)).double() for seed in seeds])


class Around(Evaluator):
    """Of `loss`, which takes points [m, d] to [m], around theta [d], in float64. Counts the points."""

    def __init__(self, loss: Callable[[Tensor], Tensor], theta: Tensor, distribution: str = "rademacher") -> None:
        self._loss, self._theta, self._distribution = loss, theta, distribution
        self.evaluated = 0

    def _at(self, steps: Tensor) -> Tensor:
        self.evaluated += len(steps)
        return self._loss(self._theta + steps)

    def _steps(self, seeds: Tensor, eps: float) -> Tensor:
        return eps * probes(seeds, len(self._theta), self._distribution)

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        v = self._steps(seeds, eps)
        return torch.stack([self._at(v), self._at(-v)], dim=1)

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        return self._at(self._steps(seeds, eps))

    def clean(self) -> float:
        return float(self._at(torch.zeros(1, len(self._theta))))

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        v, u = self._steps(seeds, eps), self._steps(others, eps)
        rows = [[self._at(v + u), self._at(v - u)], [self._at(-v + u), self._at(-v - u)]]
        return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


class Given(Evaluator):
    """Of these losses, whatever is asked."""

    def __init__(self, *, pairs: object = (), ahead: object = (), clean: float = 0.0, corners: object = ()) -> None:
        self._pairs, self._ahead, self._clean, self._corners = pairs, ahead, clean, corners

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        return torch.tensor(self._pairs, dtype=torch.float64)

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        return torch.tensor(self._ahead, dtype=torch.float64)

    def clean(self) -> float:
        return self._clean

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        return torch.tensor(self._corners, dtype=torch.float64)


class Quadratic:
    """L(theta) = 1/2 theta.H theta + b.theta with a dense H; g and H at `theta`."""

    def __init__(self, numel: int = 10, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(numel, numel, generator=generator, dtype=torch.float64)
        self.hessian = root @ root.T / numel
        self.linear, self.theta = torch.randn(2, numel, generator=generator, dtype=torch.float64)
        self.gradient = self.hessian @ self.theta + self.linear

    def __call__(self, points: Tensor) -> Tensor:
        return 0.5 * ((points @ self.hessian) * points).sum(dim=1) + points @ self.linear
