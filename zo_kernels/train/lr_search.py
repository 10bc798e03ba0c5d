"""The learning rate whose short trial run ends with the lowest loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple


class SearchResult(NamedTuple):
    """best: the learning rate with the lowest loss. tried: (learning rate, loss) of each trial, in order."""

    best: float
    tried: list[tuple[float, float]]


def search(
    trial: Callable[[float], float], low: float, high: float, *, points: int = 7, refinements: int = 2
) -> SearchResult:
    """Looks for the learning rate of the lowest loss, on a logarithmic grid, and then ever closer to the best.

    A grid whose best point is at its end goes on there, by at most `points` more. Each refinement tries the geometric
    means of the best and its two neighbours. No learning rate is tried twice; of equal losses the smaller one's counts.

    trial: the loss of a run with this learning rate; one that is not finite counts as worst.
    low, high: ends of the first grid.
    points: of the first grid, at least 2.

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
