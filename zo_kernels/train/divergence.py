"""Warns when the losses of a run show that lr or eps is too large or too small.

The thresholds come from runs of all tasks: their defaults, and lr and eps 3 to 300 times as large and as small.
"""

from __future__ import annotations

import math
from collections import deque

from torch import Tensor

_WINDOW = 5
"""Steps over which losses are averaged, and for which a spread must last. A run with far too large an lr ends in 11."""

_LARGE_NATS, _LARGE_SHARE = 0.25, 0.5
"""Mean |L+ - L-| above which eps is too large, in nats and as a share of the loss. Defaults stay below 0.12 nats and a
fifth of the loss. 30 times their eps gives 0.5 nats or more, and a loss so high that the share does not show it."""

_SMALL_SHARE = 1e-7
"""Mean |L+ - L-| over the loss that float32 rounding alone can produce."""

_RISE = 1.3
"""Smoothed loss over the initial loss. Runs that learn stay below 1.02; with 10 times too large an lr it is 1.35."""

_BASE, _MOVED, _EARLY = 20, 0.05, 100
"""The mean loss of _BASE steps changes by 10% to 50% in _EARLY steps, but by 0.5% to 5% if lr is 30 times too small."""

_FLOOR = 0.1
"""Losses below this share of the initial loss count as equal, since noise of a loss near 0 is not divergence."""

_PATIENCE = 20
"""A run has diverged when its loss stays high for this many steps."""


class DivergenceMonitor:
    """Observes every step of a run, and warns at most once of each problem: eps or lr too large or too small.

    steps: number of steps of the whole run. A long run may take longer before its loss moves.
    settled: length of the curriculum in steps, during which a loss may rise or stand still as the task becomes harder.
    factor: a run has diverged when its loss is this many times its best one.

    Raises ValueError if factor is not above 1.
    """

    def __init__(self, steps: int, *, settled: int = 0, factor: float = 3.0) -> None:
        if not factor > 1:
            raise ValueError(f"factor must be above 1, not {factor}")
        self._settled = settled
        self._factor = factor
        self._early = max(_EARLY, steps // 8)
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._start = math.nan  # mean of the first three losses, once more when the task has settled
        self._seen = 0
        self._best = math.inf
        self._first_settled: int | None = None
        self._base: list[float] = []
        self._moved: deque[float] = deque(maxlen=_BASE)
        self._large = self._small = self._high = 0  # steps in a row
        self._not_finite = False
        self._said: set[str] = set()

    @property
    def diverged(self) -> bool:
        """Whether the smoothed loss has long been far above its best, or the last one is not finite."""
        return self._not_finite or self._high >= _PATIENCE

    def observe(self, step: int, train_loss: float, losses: Tensor, lr: float, eps: float) -> list[str]:
        """Observes a step and returns the warnings that result, one sentence each.

        step: counts from 1. train_loss: in nats per token. losses: of the estimate, float64; those of the probes' two
        sides, L+ and L-, if they are [n, 2]. lr, eps: of the step.
        """
        self._not_finite = not math.isfinite(train_loss)
        if self._not_finite:
            return []
        two_sided = losses.dim() == 2 and losses.shape[1] == 2
        warnings = self._spread(losses, eps) if two_sided else []
        if step > self._settled and self._first_settled is None:
            self._first_settled = step
            self._recent.clear()
            self._seen = self._high = 0
        self._recent.append(train_loss)
        self._seen += 1
        if self._seen <= 3:
            self._start = train_loss if self._seen == 1 else self._start + (train_loss - self._start) / self._seen
        if self._seen >= _WINDOW:
            warnings += self._trend(step, math.fsum(self._recent) / _WINDOW, lr)
        warnings += self._movement(step, train_loss, lr)
        return [f"step {step}: {warning}" for warning in warnings]

    def _spread(self, losses: Tensor, eps: float) -> list[str]:
        valid = losses[losses.isfinite().all(dim=1)]
        if len(valid) == 0:
            return []
        spread, loss = float((valid[:, 0] - valid[:, 1]).abs().mean()), float(valid.mean())
        self._large = self._large + 1 if spread > _LARGE_NATS or spread > _LARGE_SHARE * loss else 0
        self._small = self._small + 1 if spread <= _SMALL_SHARE * loss else 0
        differ = f"the losses on the two sides of a probe differ by {spread:.2g} on average"
        # The spread of a diverging loss grows too, whatever eps.
        if self._large == _WINDOW and "lr too large" not in self._said and self._first("eps too large"):
            return [f"{differ}, of a loss of {loss:.3g}: eps {eps:g} is too large to measure a slope, lower it"]
        if self._small == _WINDOW and self._first("eps too small"):
            return [f"{differ}, which is no more than rounding: eps {eps:g} is too small, raise it"]
        return []

    def _trend(self, step: int, smoothed: float, lr: float) -> list[str]:
        if step > self._settled:
            self._best = min(self._best, smoothed)
        best = max(min(self._best, self._start), _FLOOR * self._start)
        self._high = self._high + 1 if smoothed > self._factor * best else 0
        if step > self._settled and smoothed > _RISE * self._start and self._first("lr too large"):
            return [f"the loss has risen from {self._start:.3g} to {smoothed:.3g}: lr {lr:g} is too large, lower it"]
        return []

    def _movement(self, step: int, loss: float, lr: float) -> list[str]:
        """Judges the loss once, early in the run. Later it may stand still because it can go no lower."""
        if self._first_settled != self._settled + 1:  # not yet, or a resumed run, whose beginning was not seen
            return []
        if len(self._base) < _BASE:
            self._base.append(loss)
        self._moved.append(loss)
        if step != self._settled + self._early + _BASE or self._said & {"lr too large", "eps too large"}:
            return []
        base, moved = math.fsum(self._base) / _BASE, math.fsum(self._moved) / _BASE
        if abs(moved - base) >= _MOVED * base:
            return []
        change = f"the loss has moved from {base:.3g} to {moved:.3g} only"
        return [f"{change}: unless it can go no lower, lr {lr:g} is too small, raise it"]

    def _first(self, kind: str) -> bool:
        """Whether this problem is new. From now on it is not."""
        new = kind not in self._said
        self._said.add(kind)
        return new
