"""Losses around theta, as estimators ask for them: of a closure, loss by loss, or of a population, many at once."""

from __future__ import annotations

import numbers
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..backends.tf32 import without_tf32
from ..distributed.replicas import Replicas
from ..estimators import BatchPopulation, Evaluator, Population
from ..params.layout import is_dtensor
from ..perturb import Displacement, Perturbation
from .shared import SharedEvaluator

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Closure = Callable[[], "Tensor | float"]

Guard = Callable[[], AbstractContextManager[object]]
"""Makes the context in which losses are evaluated, such as `InterruptGate.open`."""

_BACKWARD = (torch.autograd.backward.__code__, torch.autograd.grad.__code__)


def check_callable(loss: object) -> None:
    """Raises TypeError unless losses can be asked for: of a closure, or of a population."""
    if not (callable(loss) or isinstance(loss, Population)):
        raise TypeError(
            f"the closure must be a function that computes the loss, not a {type(loss).__name__}: pass `lambda: ...`"
        )


def make_evaluator(
    loss: Closure | Population,
    theta: Perturbation,
    eps: Sequence[float],
    guard: Guard,
    replicas: Replicas | None,
) -> Evaluator:
    """The evaluator of a loss.

    theta: whose step has begun. eps: of each segment; estimators are given the first that is not 0.
    Raises ValueError for a population that can't be evaluated at these points.
    """
    evaluator: Evaluator
    if not isinstance(loss, Population):
        evaluator = ClosureEvaluator(loss, theta, eps, guard)
    elif theta.space.shards is not None:
        raise ValueError("a population reads whole parameters, but these are sharded: pass a closure")
    else:
        evaluator = PopulationEvaluator(loss, theta, eps, guard)
    return evaluator if replicas is None else SharedEvaluator(evaluator, replicas)


class ClosureEvaluator(Evaluator):
    """Moves the parameters from point to point and calls a closure at each.

    Of sharded parameters, all processes of a shard group call it at each point, each perhaps on its own part of the
    batch; a loss is the mean of theirs, and the losses of a call are exchanged in one all_gather.
    """

    def __init__(self, closure: Closure, theta: Perturbation, eps: Sequence[float], guard: Guard) -> None:
        self._closure = closure
        self._theta = theta
        self._plus, self._minus = list(eps), [-e for e in eps]
        self._guard = guard

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
            with self._guard(), self._theta.seen_moved(), without_tf32():
                forget_casts()
                losses.append(_as_number(self._evaluate()))
        found = torch.stack(losses).cpu()
        shards = self._theta.space.shards
        return found if shards is None else shards.mean(found)

    def _evaluate(self) -> object:
        try:
            return self._closure()
        except RuntimeError as error:
            if "does not require grad" in str(error) and _is_raised_by_backward(error):
                raise ValueError(
                    "the closure calls backward(), but a zero-order step needs losses alone: leave backward() and "
                    "zero_grad() out"
                ) from error
            raise


class PopulationEvaluator(Evaluator):
    """Asks a population, which knows Rademacher probes and one eps for all parameters."""

    batched: BatchPopulation | None
    """The population, if it consists of several micro-batches."""

    def __init__(self, population: Population, theta: Perturbation, eps: Sequence[float], guard: Guard) -> None:
        if len(set(eps)) > 1:
            raise ValueError("a population is evaluated with one eps, but the groups differ in theirs")
        if theta.distribution != "rademacher":
            raise ValueError(f"a population is evaluated at rademacher probes, not at {theta.distribution} ones")
        self._population = population
        self._theta = theta
        self._eps = list(eps)
        self._guard = guard
        self.batched = population if isinstance(population, BatchPopulation) and population.parts > 1 else None

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Float64 [n, 2]: sums over one micro-batch of a `batched` population."""
        assert self.batched is not None
        self._theta.leave()
        with self._guard(), self._theta.space.numbering(self._theta.theta), without_tf32():
            forget_casts()
            return self.batched.part_nats(part, seeds, eps)

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        self._theta.leave()
        with self._guard(), self._theta.space.numbering(self._theta.theta), without_tf32():
            forget_casts()
            return self._population.population_loss(seeds, eps)

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        if self._theta.streamed.slots:
            raise ValueError(
                "this estimator moves the parameters that a population reads, which mode='streamed' does not: "
                "pass a closure or use mode='shadow'"
            )
        # Signs of the second probe by moving theta, those of the first by the population.
        losses = [
            [self._beside(seed, other, alphas) for alphas in (self._eps, [-e for e in self._eps])]
            for seed, other in zip(seeds, others.tolist(), strict=True)
        ]
        return torch.stack([torch.stack(pair, dim=-1) for pair in losses])

    def _beside(self, seed: Tensor, other: int, alphas: Sequence[float]) -> Tensor:
        """Losses [2] at theta + alphas * p(other) with + and - of the probe."""
        self._theta.move((other, alphas))
        with self._guard(), self._theta.space.numbering(), without_tf32():
            forget_casts()
            return self._population.population_loss(seed[None], self._eps[0])[0]


def forget_casts() -> None:
    """Empties autocast's cache of parameters cast to 16 bits, which does not notice that they move.

    The cache lives as long as the outermost autocast context, even one with enabled=False around a closure that has
    its own. It is therefore emptied whether or not autocast is enabled here.
    """
    torch.clear_autocast_cache()


def _is_raised_by_backward(error: BaseException) -> bool:
    return any(frame.f_code in _BACKWARD for frame, _ in traceback.walk_tb(error.__traceback__))


def _what_else(returned: object) -> str:
    if returned is None:
        return "but it returned None: does it end with `return loss`?"
    if hasattr(returned, "loss"):
        return f"not a {type(returned).__name__}: return its .loss"
    if isinstance(returned, (tuple, list, dict)):
        return f"not a {type(returned).__name__}: return the loss in it"
    return f"not a {type(returned).__name__}"


def _as_number(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        if isinstance(loss, numbers.Real) and not isinstance(loss, bool):
            return torch.tensor(float(loss), dtype=torch.float64)
        raise TypeError(f"the closure must return the loss, a number or a tensor of one element, {_what_else(loss)}")
    if loss.is_complex():
        raise TypeError("the closure must return a real loss, not a complex one")
    if loss.dtype == torch.bool:
        raise TypeError("the closure must return the loss, not a tensor of bool")
    if is_dtensor(loss):  # a loss computed from DTensors is one itself
        loss = cast("DTensor", loss).full_tensor()
    if loss.numel() != 1:
        raise ValueError(f"the closure must return one loss, not a tensor of shape {tuple(loss.shape)}")
    return loss.detach().reshape(()).to(torch.float64, copy=True)  # a copy: it may be reused
