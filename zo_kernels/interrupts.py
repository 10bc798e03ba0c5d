"""Delays SIGINT and SIGTERM until a point where it is safe to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class deferred_interrupts:
    """Context manager that delays a SIGINT until the end of its block.

    It keeps moving theta and recording the move together: if only one of them happened, theta could not be restored.
    """

    def __enter__(self) -> None:
        self._received: FrameType | None = None
        self._arrived = False
        self._handler = None
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            self._handler = signal.getsignal(signal.SIGINT)
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._arrived, self._received = True, frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            if self._arrived:
                self._handler(signal.SIGINT, self._received)


class InterruptGate:
    """Context manager in which SIGINT and SIGTERM raise KeyboardInterrupt only inside `with gate.open():`.

    A signal that arrives elsewhere waits for the next `open()`. So a run can be stopped while a step takes losses,
    after which the parameters are restored, but not while it updates parameters or writes a file. The gate does nothing
    outside the main thread, since Python delivers signals only there.
    """

    requested: int | None
    """Number of the first signal that arrived; None if there was none."""

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
        """Context in which the run may be interrupted. Raises KeyboardInterrupt at once if a signal arrived before."""
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
