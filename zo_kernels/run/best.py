"""The best step of a run: the first one with the lowest loss of a set that the run is validated on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from .journal import Journal

BEST = "best"
"""Names the best step where a step is asked for. As --keep, it may be followed by a colon and the name of a set."""


class Best(NamedTuple):
    """step: number of steps after which the loss was lowest. since: number of validations after that one."""

    step: int
    loss: float
    since: int = 0


def better(best: Best | None, step: int, loss: float) -> Best | None:
    """The best step after one more validation. None until a loss is finite; an equal loss is not a better one."""
    if loss < (float("inf") if best is None else best.loss):
        return Best(step, loss)
    return None if best is None else best._replace(since=best.since + 1)


def best_of(losses: Iterable[tuple[int, float]]) -> Best | None:
    """The best of (step, loss) pairs in order of their steps."""
    best = None
    for step, loss in losses:
        best = better(best, step, loss)
    return best


def set_of(keep: str | None) -> str:
    """The name of the set whose loss counts, by the value of --keep."""
    return (keep or "").partition(":")[2] or "validation"


def best_step(run: Path, journal: Journal, keep: str | None) -> int:
    """The best step of a run, so far. Raises UsageError if it has none, and JournalError for damaged scores."""
    name = set_of(keep)
    best = best_of(journal.losses(name))
    if best is None:
        raise UsageError(f"{run} has no best step: it has no loss of the set {name} yet")
    return best.step
