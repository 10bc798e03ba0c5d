"""An evaluator whose points are shared out among replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..distributed.replicas import Replicas
from ..estimators import BatchPopulation, Evaluator


@runtime_checkable
class BatchEvaluator(Protocol):
    """An evaluator of a population of several micro-batches, if `batched` is not None."""

    batched: BatchPopulation | None

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Float64 [n, 2]: sums over one micro-batch."""
        ...


class SharedEvaluator(Evaluator):
    """Divides the points of an evaluator among replicas. All replicas get the same losses.

    `pairs` and `ahead` are divided as `Replicas.split` says, `corners` by probes.
    """

    def __init__(self, evaluator: Evaluator, replicas: Replicas) -> None:
        self._own = evaluator
        self._replicas = replicas
        self._parted: BatchEvaluator | None = None
        if replicas.split != "probes" and isinstance(evaluator, BatchEvaluator) and evaluator.batched is not None:
            self._parted = evaluator

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        if self._parted is not None and self._parted.batched is not None:
            return self._pairs_by_parts(self._parted, self._parted.batched, seeds, eps)
        return self._replicas.exchange(lambda mine: self._own.pairs(seeds[mine], eps), len(seeds), (2,))

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        if self._parted is not None:
            return self.pairs(seeds, eps)[:, 0]
        return self._replicas.exchange(lambda mine: self._own.ahead(seeds[mine], eps), len(seeds), ())

    def clean(self) -> float:
        if self._parted is not None:
            return super().clean()

        def alone(mine: slice) -> Tensor:
            return torch.tensor([self._own.clean()], dtype=torch.float64)

        return float(self._replicas.exchange(alone, 1, ()))

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        return self._replicas.exchange(
            lambda mine: self._own.corners(seeds[mine], others[mine], eps), len(seeds), (2, 2)
        )

    def _pairs_by_parts(self, own: BatchEvaluator, batched: BatchPopulation, seeds: Tensor, eps: float) -> Tensor:
        """Deals the table of probes and parts cell by cell, and sums each probe's parts in their order."""
        probes, parts = len(seeds), batched.parts
        parts_first = self._replicas.split == "batch"

        def evaluate(mine: slice) -> Tensor:
            rows = []
            for outer, inner in rectangles(mine, probes if parts_first else parts):
                some_parts, some_probes = (outer, inner) if parts_first else (inner, outer)
                nats = [
                    own.part_nats(part, seeds[some_probes], eps) for part in range(some_parts.start, some_parts.stop)
                ]
                rows.append(torch.stack(nats, dim=0 if parts_first else 1).view(-1, 2))
            return torch.cat(rows)

        cells = self._replicas.exchange(evaluate, probes * parts, (2,))
        by_part = cells.view(parts, probes, 2) if parts_first else cells.view(probes, parts, 2).transpose(0, 1)
        total = torch.zeros(probes, 2, dtype=torch.float64)
        for nats in by_part:
            total += nats
        return total / batched.scored


def rectangles(cells: slice, width: int) -> Iterator[tuple[slice, slice]]:
    """Contiguous cells of a table, row after row, as at most three rectangles: (rows, columns)."""
    start = cells.start
    while start < cells.stop:
        row, column = divmod(start, width)
        if column == 0 and cells.stop - start >= width:
            rows = (cells.stop - start) // width
            yield slice(row, row + rows), slice(0, width)
            start += rows * width
        else:
            stop = min(width, column + cells.stop - start)
            yield slice(row, row + 1), slice(column, stop)
            start += stop - column
