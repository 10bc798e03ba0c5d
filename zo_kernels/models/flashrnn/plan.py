"""Plans how many probes and how many time steps one call of flashrnn evaluates."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from ...backends.base import RecurrentWeights
from ...backends.recurrent.memory import population_bytes
from .call import MAX_ELEMENTS, MAX_HEADS, check_size, elements
from .choice import CELLS
from .members import wide_dtype

_UNLIMITED = 1 << 62

_STEPS = 64
"""A call evaluates at least this many time steps, if evaluating fewer probes makes room for them."""


@dataclass(frozen=True)
class Work:
    """The sizes that a plan depends on: those of the batch, and the memory of one probe."""

    cell: str
    heads: int
    """Heads of one member."""
    head_dim: int
    batch_size: int
    steps: int
    probe_bytes: int
    """Bytes of a probe's two members and their token tables."""
    step_bytes: int
    """Bytes of one time step of a probe."""

    @staticmethod
    def of(weights: RecurrentWeights, batch_size: int, steps: int, run_dtype: torch.dtype) -> Work:
        """The work for a batch of this size. run_dtype: dtype of the recurrence."""
        shape = CELLS[weights.cell]
        vocab_size, (heads, _, head_dim) = len(weights.embedding), weights.bias.shape
        units = heads * head_dim
        wide, narrow = wide_dtype(weights.bias.dtype).itemsize, run_dtype.itemsize
        row = units * shape.input_rows * (wide if narrow == wide else 2 * wide + narrow)  # with its rounded copy
        if batch_size * steps > vocab_size:
            table, projected = vocab_size * row, 0
        else:
            table, projected = 0, row + wide * weights.embedding.shape[1]
        # Besides Wx and the states, flashrnn's cuda allocates the gates that a backward pass would need.
        kept = narrow * units * (shape.input_rows + shape.states + shape.recurrent_rows + shape.biases)
        parameters = wide * sum(x.numel() for x in weights.tensors)
        if weights.num_layers > 1:
            # The members of the layers above lie side by side in copies. Their projections are rounded from wide ones,
            # and a layer has outputs of its own beside those below.
            parameters += wide * sum(x.numel() for x in weights.upper)
            kept += units * (wide * shape.input_rows + 2 * wide + 2 * narrow)
        probe_bytes, step_bytes = 2 * (parameters + table), 2 * batch_size * (kept + projected)
        return Work(weights.cell, heads, head_dim, batch_size, steps, probe_bytes, step_bytes)

    def fits(self, probes: int, steps: int, budget: int) -> bool:
        """Whether one call can evaluate so many probes and steps within flashrnn's limits and `budget` bytes."""
        heads = 2 * probes * self.heads
        return (
            heads <= MAX_HEADS
            and elements(self.cell, steps, self.batch_size, heads, self.head_dim) <= MAX_ELEMENTS
            and probes * (self.probe_bytes + steps * self.step_bytes) <= budget
        )


@dataclass(frozen=True)
class Plan:
    """The number of probes and of time steps of one call."""

    probes: int
    steps: int


def make_plan(work: Work, probes: int, budget: int, compiled: Collection[int] = ()) -> Plan:
    """Makes the plan for a population of `probes` probes within `budget` bytes.

    compiled: numbers of probes that flashrnn has been compiled for. The one with the least work is used, unless more
        than twice as many probes fit.

    If even one step of one probe exceeds the budget, it is planned anyway, and the device may run out of memory. Raises
    ValueError if one step of one probe is too large for flashrnn.
    """
    check_size(work.cell, 1, work.batch_size, 2 * work.heads, work.head_dim)
    together = min(work.steps, _STEPS)
    most = _largest(probes, lambda n: work.fits(n, together, budget))
    chunks = -(-probes // most)
    chosen = -(-probes // chunks)  # even chunks, since the last one is padded
    known = [n for n in compiled if chosen <= 2 * n and work.fits(n, together, budget)]
    if known:
        chosen = min(known, key=lambda n: (-(-probes // n) * n, -n))
    return Plan(chosen, _most_steps(work, chosen, budget))


def segment_length(weights: RecurrentWeights, batch_size: int, steps: int) -> int:
    """Number of time steps of one call of the unperturbed model. Raises the ValueError of `make_plan`."""
    work = Work.of(weights, batch_size, steps, weights.bias.dtype)
    check_size(work.cell, 1, batch_size, work.heads, work.head_dim)
    if steps <= _STEPS and work.fits(1, steps, _UNLIMITED):
        return steps  # for generation, where a query of the free memory would take longer
    return _most_steps(work, 1, population_bytes(weights))


def split_batch(cell: str, batch_size: int, heads: int, head_dim: int) -> list[slice]:
    """Cuts a batch into parts, as equal as can be, of which flashrnn takes a step of so many heads.

    Raises ValueError if there are too many heads, or a step of one sequence is too large.
    """
    check_size(cell, 1, 1, heads, head_dim)
    most = _largest(batch_size, lambda rows: elements(cell, 1, rows, heads, head_dim) <= MAX_ELEMENTS)
    rows = -(-batch_size // -(-batch_size // most))
    return [slice(first, min(first + rows, batch_size)) for first in range(0, batch_size, rows)]


def _most_steps(work: Work, probes: int, budget: int) -> int:
    return _largest(work.steps, lambda steps: work.fits(probes, steps, budget))


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, by bisection; 1 if none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
