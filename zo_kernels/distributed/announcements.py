"""What rank 0 tells the other ranks: values that JSON can hold, in a store that they share.

The others wait for as long as rank 0 shows that it lives. So it may take hours to read data, but is soon missed if it
dies or is suspended.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..errors import (
    CheckpointError,
    JournalError,
    ProcessGroupError,
    ReplicaError,
    ReplicaStoppedError,
    UsageError,
    first_line,
)
from .rendezvous import call_with_timeout
from .signed_store import SignedStore

T = TypeVar("T")

MOST_BYTES = 4 << 20
"""Length of an announcement: torch's stores close the connection at twice as much."""

_SIGN_OF_LIFE = 1.0
"""Seconds between two signs that rank 0 lives."""
_LONGEST_PAUSE = 0.2

_TOLD = (UsageError, JournalError, CheckpointError, ProcessGroupError, ReplicaError)
"""Errors of rank 0 whose sentence the others repeat."""


class Announcements:
    """Rank 0's announcements to the others. Every rank calls `announce` the same number of times.

    store: One that only these ranks use.
    patience: Seconds without a sign of life after which rank 0 is given up.
    """

    def __init__(self, store: SignedStore, rank: int, patience: float) -> None:
        self._store, self._rank, self._patience = store, rank, patience
        self._count = 0

    def announce(self, decide: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """Calls `decide` on rank 0, whose result JSON must be able to hold. Returns what `read` makes of it.

        read: Called on every rank with the value that came out of JSON. Raises ValueError for one that can't be.

        If `decide` raises on rank 0, rank 0 raises its error and the others raise ReplicaError, which repeats it, or
        ReplicaStoppedError after a Ctrl-C. They raise ReplicaError too if rank 0 is given up, and for a value that
        `read` refuses.
        """
        self._count += 1
        if self._rank != 0:
            message = self._hear()
        else:
            try:
                with self._signs_of_life():
                    message = _encode({"value": decide()})
            except BaseException as error:
                message = _encode_error(error)
                with suppress(RuntimeError, TimeoutError):
                    self._say(message)
                raise
            self._say(message)
        return _decode(message, read)

    def _say(self, message: bytes) -> None:
        try:
            call_with_timeout(lambda: self._store.set(str(self._count), message.decode()), self._patience)
        except (RuntimeError, TimeoutError) as error:
            raise ReplicaError(f"rank 0 can't reach the other ranks: {first_line(error)}") from error

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Counts in the store, in a thread, while rank 0 is busy."""
        has_ended = threading.Event()

        def count() -> None:
            number = 0
            with suppress(RuntimeError):
                while not has_ended.wait(_SIGN_OF_LIFE):
                    number += 1
                    self._store.set("alive", f"{self._count}/{number}")

        threading.Thread(target=count, daemon=True).start()
        try:
            yield
        finally:
            has_ended.set()

    def _hear(self) -> bytes:
        """Waits for the next announcement of rank 0."""
        sign, seen, pause = b"", time.monotonic(), 0.005

        def look() -> tuple[bytes | None, bytes]:
            if self._store.check([str(self._count)]):
                return self._store.get(str(self._count)), b""
            return None, self._store.get("alive") if self._store.check(["alive"]) else b""

        while True:
            try:
                message, latest = call_with_timeout(look, self._patience)
            except ProcessGroupError as error:
                raise ReplicaError(str(error)) from error
            except (RuntimeError, ValueError, MemoryError) as error:
                raise ReplicaError(f"lost rank 0, which prepares the run: {first_line(error)}") from error
            except TimeoutError:
                message, latest = None, sign
            if message is not None:
                return message
            if latest != sign:
                sign, seen = latest, time.monotonic()
            if time.monotonic() - seen > self._patience:
                raise ReplicaError(f"no answer from rank 0 for {self._patience:g} s: stopped, stuck or cut off")
            time.sleep(pause)
            pause = min(1.2 * pause, _LONGEST_PAUSE)


def _encode(message: dict[str, Any]) -> bytes:
    encoded = json.dumps(message).encode()
    if len(encoded) > MOST_BYTES:
        raise ReplicaError(f"rank 0 has {len(encoded)} bytes to tell the other ranks, more than {MOST_BYTES}")
    return encoded


def _encode_error(error: BaseException) -> bytes:
    kind = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    return _encode({kind: str(error)[:2000] if isinstance(error, _TOLD) else "see its output"})


def _decode(encoded: bytes, read: Callable[[Any], T]) -> T:
    try:
        if len(encoded) > MOST_BYTES:
            raise ValueError(f"it has {len(encoded)} bytes")
        match json.loads(encoded):
            case {"value": value}:
                return read(value)
            case {"stopped": str()}:
                raise ReplicaStoppedError("rank 0 was interrupted")
            case {"failed": str(sentence)}:
                raise ReplicaError(f"rank 0 failed: {sentence}")
        raise ValueError("it is none")
    except (ValueError, RecursionError) as error:
        raise ReplicaError(f"what rank 0 announced can't be read ({first_line(error)})") from error
