"""Measures the seconds of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures the seconds of training, without validations and files."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs the clock inside the context."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = self.elapsed()
            self._started = None

    def elapsed(self) -> float:
        """Returns the seconds so far."""
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)
