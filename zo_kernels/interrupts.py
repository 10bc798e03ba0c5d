"""Ctrl-C and SIGTERM: held back during a kernel call, and let through only where a run may be stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class deferred_interrupts:
    """`with deferred_interrupts():` delivers a SIGINT that arrives inside only at the end of the block.

    Moving theta and noting where it is must both happen or neither, or theta could not be restored.
    """

    def __enter__(self) -> None:
        self._received: FrameType | None = None
        self._arrived = False
        self._handler = None
        if threading.current_thread() is threading.main_thread():  # only there are signals delivered
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
