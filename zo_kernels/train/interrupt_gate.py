"""Ctrl-C and SIGTERM that stop a run where it may be stopped, and nowhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGate:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt only inside `with gate.open():`; elsewhere they wait
    for the next.

    So a run can be stopped in the middle of a step, which then restores the parameters, but not in the middle of an
    update or of writing a file. Outside the main thread, to which Python delivers no signals, it does nothing.
    """

    requested: int | None
    """The first of these signals that came, if one did."""

    def __init__(self) -> None:
        self.requested = None
        self._is_open = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptGate:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Where a run may be interrupted: raises KeyboardInterrupt at once if a signal came before."""
        self._is_open = True
        try:
            if self.requested is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_open = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = self.requested or number
        if self._is_open:
            raise KeyboardInterrupt
