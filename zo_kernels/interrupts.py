"""Holding Ctrl-C back for the length of one kernel call."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


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
