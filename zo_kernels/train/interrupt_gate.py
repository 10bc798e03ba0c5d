"""Ctrl-C that stops a run where it may be stopped, and nowhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class InterruptGate:
    """While entered, SIGINT raises KeyboardInterrupt only inside `with gate.open():`; elsewhere it waits for the next.

    So a run can be stopped in the middle of a step, which then restores the parameters, but not in the middle of an
    update or of writing a file. Outside the main thread, to which Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._requested = False
        self._is_open = False
        self._previous: Any = None

    def __enter__(self) -> InterruptGate:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Where a run may be interrupted: raises KeyboardInterrupt at once if SIGINT came before."""
        self._is_open = True
        try:
            if self._requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_open = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._is_open:
            raise KeyboardInterrupt
