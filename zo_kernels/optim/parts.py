"""The gradient of a batch from those of its parts: the same bits however the parts are divided among processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from ..distributed.exact_sum import MOST, ExactSum
from ..distributed.replicas import Replicas
from ..errors import DivergenceError
from .evaluators import Guard


class LossInParts(Protocol):
    """A loss over a batch that consists of parts, such as `RecurrentLM.activity` returns."""

    parameters: list[nn.Parameter]
    scored: int
    """Number of scored positions of all parts."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        ...

    def part_gradient(self, part: int, seeds: Tensor, eps: float) -> tuple[float, Sequence[Tensor]]:
        """The sum of losses of a part without perturbation, and an estimate of its gradient for each parameter."""
        ...


def mean_gradient(
    loss: LossInParts, seeds: Tensor, eps: float, replicas: Replicas | None = None, guard: Guard = nullcontext
) -> tuple[float, list[Tensor]]:
    """The mean loss over the scored positions, and an estimate of its gradient for each of `loss.parameters`.

    The gradients are float32, or float64 for float64 parameters. Those of several parts are added up exactly
    (`zo_kernels.distributed.exact_sum`), so the bits do not depend on the number of processes.

    replicas: processes that share the parts. Each sends 16 bytes per parameter.
    guard: makes a context that is entered while parts are computed, such as `InterruptGate.open`.

    Raises DivergenceError if the loss or its gradient is not finite, ValueError for more than 65,536 parts and for
    replicas and a single part, what `loss.part_gradient` raises, and with replicas what `Replicas.exchange` raises.
    """
    if loss.parts == 1:
        if replicas is not None:
            raise ValueError("replicas share the micro-batches of a batch, and this has one: give micro_batch_size")
        with guard():
            nats, gradients = loss.part_gradient(0, seeds, eps)
        _check(nats / loss.scored, _largest(gradients))
        return nats / loss.scored, [x / loss.scored for x in gradients]
    sums = ExactSum(loss.parameters, loss.parts)

    def compute(share: slice) -> Tensor:
        rows = []
        with guard():
            for part in range(share.start, share.stop):
                nats, gradients = loss.part_gradient(part, seeds, eps)
                rows.append((nats, _largest(gradients)))
                if rows[-1][1] <= MOST:
                    sums.add(gradients)
        return torch.tensor(rows, dtype=torch.float64)

    rows = compute(slice(0, loss.parts)) if replicas is None else replicas.exchange(compute, loss.parts, (2,))
    value = sum(rows[:, 0].tolist()) / loss.scored
    _check(value, float(rows[:, 1].max()))
    if replicas is not None:
        replicas.add_up(sums.words)
    means = [(total / loss.scored).to(_dtype_for(p)) for total, p in zip(sums.total(), loss.parameters, strict=True)]
    return value, means


def _largest(gradients: Sequence[Tensor]) -> float:
    """The largest magnitude; NaN if any element is."""
    return float(torch.stack([x.abs().max().double() for x in gradients]).max())


def _check(value: float, largest: float) -> None:
    if not (math.isfinite(value) and largest <= MOST):
        raise DivergenceError(f"the loss is {value} or its gradient is not finite: lower lr, or check the batch")


def _dtype_for(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
