"""`--lr search`: finds a learning rate by short trial runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from rich.console import Console

from ..errors import DivergenceError, GridRangeError, UsageError
from ..interrupts import InterruptGate
from .build import build
from .config import TrainConfig
from .ranks import Ranks
from .solvers import lr_at

_REACH = 30.0
"""The first grid reaches from the config's learning rate divided by this to the same multiplied by it."""

_MARGIN = 2.0
"""The best trial's learning rate is divided by this. The fastest one at the beginning of a run is close to one that
diverges, and noisy over a whole run (bench/results/training.md)."""

_USUAL_TRIALS = 11
"""Seven of the first grid and four around the best, if that is not at an end of the grid."""

_LOST = 1.3
"""A trial has diverged if its loss rises above the first one times this. In runs that learn, that ratio stays below
1.02."""


def find_lr(config: TrainConfig, gate: InterruptGate, ranks: Ranks, console: Console) -> tuple[float, SearchResult]:
    """Returns half the learning rate of the trial that ends with the lowest loss, and all trials. Prints each.

    A trial is the beginning of the run: a tenth of its steps but at least 40, from the same initial parameters and with
    the same batches. Its loss is the mean of the training losses in its last quarter. A trial whose loss rises far
    above the first one has diverged. Raises UsageError if all trials diverge.
    """
    steps = min(config.steps, max(40, config.steps // 10))
    console.print(f"search  trials of {steps} steps around lr {config.lr:g}")
    started = time.monotonic()
    is_first = True

    def trial(lr: float) -> float:
        nonlocal is_first
        loss = _final_loss(replace(config, lr=lr), steps, gate, ranks)
        console.print(
            f"        lr {lr:<10.3g} loss {loss:.3f}" if math.isfinite(loss) else f"        lr {lr:<10.3g} diverges"
        )
        if is_first:
            is_first, seconds = False, (time.monotonic() - started) * _USUAL_TRIALS
            console.print(f"        {_USUAL_TRIALS} trials take about {seconds:.0f} s; there may be some more")
        return loss

    try:
        found = search(trial, config.lr / _REACH, config.lr * _REACH)
    except ValueError as error:
        raise UsageError(str(error)) from error
    lr = float(f"{found.best / _MARGIN:.3g}")
    console.print(f"        best {found.best:.3g}: the run takes half of it, --lr {lr:g}")
    return lr, found


def _final_loss(config: TrainConfig, steps: int, gate: InterruptGate, ranks: Ranks) -> float:
    run = build(config, gate)
    ranks.join(run.solver)
    losses: list[float] = []
    try:
        for step in range(steps):
            losses.append(run.solver.step(run.batch(step), lr_at(config, step)).loss)
            if losses[-1] > _LOST * losses[0]:
                return math.inf
    except (DivergenceError, GridRangeError):
        return math.inf
    last = losses[-max(1, steps // 4) :]
    return math.fsum(last) / len(last)


class SearchResult(NamedTuple):
    """best: learning rate with the lowest loss. tried: (learning rate, loss) of each trial, in order."""

    best: float
    tried: list[tuple[float, float]]


def search(
    trial: Callable[[float], float], low: float, high: float, *, points: int = 7, refinements: int = 2
) -> SearchResult:
    """Searches for the learning rate with the lowest loss: on a logarithmic grid, then ever closer to the best.

    If the best point is at an end of the grid, the grid is extended there, by at most `points` points. Each refinement
    tries the geometric means of the best point and its two neighbours. No learning rate is tried twice. Of equal
    losses, that of the smaller learning rate counts as lower.

    trial: returns the loss of a run with this learning rate. A loss that is not finite counts as the worst.
    low, high: ends of the first grid.
    points: number of points of the first grid, at least 2.
    refinements: at least 0.

    Raises ValueError for values out of range, and if no trial of the first grid has a finite loss.
    """
    if not (0 < low < high and math.isfinite(high)):
        raise ValueError(f"learning rates must be 0 < low < high, not low {low} and high {high}")
    if points < 2:
        raise ValueError(f"points must be at least 2, not {points}")
    if refinements < 0:
        raise ValueError(f"refinements must be at least 0, not {refinements}")
    losses: dict[float, float] = {}

    def attempt(lr: float) -> None:
        if lr not in losses:
            losses[lr] = trial(lr)

    def rank(lr: float) -> tuple[float, float]:
        return (losses[lr] if math.isfinite(losses[lr]) else math.inf), lr

    ratio = math.exp((math.log(high) - math.log(low)) / (points - 1))
    for i in range(points):
        attempt(high if i == points - 1 else low * ratio**i)
    if not any(map(math.isfinite, losses.values())):
        raise ValueError(
            f"the loss of every trial is NaN or infinite, with lr from {low:g} to {high:g}: try lower ones"
        )
    for _ in range(points):
        ordered = sorted(losses)
        best = min(ordered, key=rank)
        if best == ordered[0] and rank(best)[0] < rank(ordered[1])[0]:
            further = best / ratio
        elif best == ordered[-1] and rank(best)[0] < rank(ordered[-2])[0]:
            further = best * ratio
        else:
            break
        if not 0 < further < math.inf:
            break
        attempt(further)
    for _ in range(refinements):
        ordered = sorted(losses)
        place = ordered.index(min(ordered, key=rank))
        for lower, upper in pairwise(ordered[max(place - 1, 0) : place + 2]):
            attempt(math.sqrt(lower) * math.sqrt(upper))
    return SearchResult(min(losses, key=rank), list(losses.items()))
