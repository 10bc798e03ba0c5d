"""Warns when steps wait for a core instead of computing: other programs, or threads that spin, hold the cores.

The kernel counts how long a thread that could run waited for a core. That is no wait for a GPU, a disk, another rank or
a laptop that slept, and not the share of a step that one thread computes while the others have nothing to do.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from statistics import median

_STEPS, _SECONDS = 20, 5.0
"""Steps are judged together when there are so many, and when they took so long: a short run warns of nothing."""

_SHARE = 0.4
"""Share of a step's time that its main thread waits, in the median. Another program on all cores makes it 0.5."""


class CoreMonitor:
    """Observes the steps of a run on the CPU, and warns once. threads: those that compute a step."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._shares: list[float] = []
        self._seconds = 0.0
        self._said = False

    def observe(self, step: int, seconds: float, waited: float) -> list[str]:
        """Observes a step and returns the warning that results, if any.

        step: counts from 1. seconds: time that the step took. waited: how much of it the main thread waited for a core.
        """
        if seconds <= 0 or self._said:
            return []
        self._shares.append(waited / seconds)
        self._seconds += seconds
        if len(self._shares) < _STEPS or self._seconds < _SECONDS:
            return []
        share = median(self._shares)
        self._shares, self._seconds = [], 0.0
        if share < _SHARE:
            return []
        self._said = True
        advice = f"lower --threads ({self._threads} now) or end other programs"
        if os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
            advice += ", and set OMP_WAIT_POLICY=passive, with which idle threads do not spin"
        return [
            f"step {step}: steps wait for a core {min(share, 1):.0%} of their time, for more threads are busy than "
            f"there are cores: {advice}"
        ]


def seconds_waited() -> float | None:
    """How long this thread has waited for a core so far, in seconds; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return None
