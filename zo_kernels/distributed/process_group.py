"""The process group of a launch by torchrun, or by a launcher that sets the same variables.

The group forms again after any restart, and is left without hanging. A rank that loses patience with another raises
ProcessGroupError, which names the ranks that did not answer, and leaves the rest to the launcher: torchrun stops all
processes when one exits with an error, by SIGTERM and 30 seconds later by SIGKILL, and starts them again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import ProcessGroupError, format_ranks
from .rendezvous import call_with_timeout, meet

_REPORT_AFTER = 1.0
"""Seconds that a rank waits before it tells the others so."""
_LEAVE_TIMEOUT = 2.0
"""Seconds for leaving the group, which an unfinished operation would hold up."""
_GROUP_TIMEOUT = timedelta(hours=1)
"""Torch's own, for operations that nobody waits for by `wait_for`."""
_SIGNAL_INTERVAL = 0.2
"""Seconds that a wait inside gloo lasts: Python runs signal handlers only between two of them."""


def is_launched() -> bool:
    """Whether this is one of several processes of torchrun, or of a launcher that sets the same variables."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def process_group(device: str, timeout: float) -> Iterator[None]:
    """The default process group of this launch.

    device: "cpu" for a gloo group; "cuda" for one of NCCL, in which each process uses the GPU of its LOCAL_RANK.
    timeout: seconds for all processes to meet.

    Raises ProcessGroupError if they don't, naming the ranks that are missing. Leaving takes a few seconds at most,
    whatever the other ranks do.
    """
    global _attendance
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.startswith("cuda"):
        if "LOCAL_RANK" not in os.environ:
            raise ProcessGroupError("LOCAL_RANK is not set: export it, or launch by torchrun")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    store = meet(rank, world_size, timeout)

    def form_group() -> _Attendance:
        group_store = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world_size, timeout=_GROUP_TIMEOUT)
        return _Attendance(store, rank, world_size)

    try:
        _attendance = call_with_timeout(form_group, timeout)
    except (RuntimeError, TimeoutError) as error:
        raise ProcessGroupError(f"the {backend} group could not be formed: {error}") from error
    try:
        yield
        _attendance.leave()
    except BaseException:
        if dist.group.WORLD is not None and backend == "nccl":  # it would wait for its operations
            with suppress(TimeoutError):
                call_with_timeout(dist.group.WORLD.abort, _LEAVE_TIMEOUT)
        raise
    finally:
        _attendance = None
        with suppress(TimeoutError):
            call_with_timeout(dist.destroy_process_group, _LEAVE_TIMEOUT)


def wait_for(work: dist.Work, seconds: float, group: dist.ProcessGroup | None = None) -> None:
    """Waits for a collective operation of `group`. All ranks must wait for the same operations in the same order.

    Signal handlers run during the wait, and what they raise is passed on. Raises ProcessGroupError if another rank has
    died, or if the operation takes longer than `seconds`; the error then names the ranks that did not come to it.
    """
    is_nccl = dist.get_backend(group) == dist.Backend.NCCL
    attendance = _attendance
    if attendance is not None:
        attendance.operations += 1
    started, has_reported = time.monotonic(), False
    while not work.is_completed():
        waited = time.monotonic() - started
        if waited > seconds:
            absent = [] if attendance is None else attendance.find_absent()
            who = format_ranks(absent) if absent else "another rank"
            raise ProcessGroupError(f"no answer from {who} for {seconds:g} s: stopped, stuck or cut off")
        if waited > _REPORT_AFTER and not has_reported and attendance is not None:
            attendance.report()
            has_reported = True
        if is_nccl:  # its wait(timeout) would abort the group
            time.sleep(1e-4)
        else:
            with suppress(RuntimeError):  # the interval is over, or the operation failed: then the last wait raises
                work.wait(timedelta(seconds=min(_SIGNAL_INTERVAL, max(seconds - waited, 1e-3))))
    try:
        work.wait()
    except RuntimeError as error:
        raise ProcessGroupError(
            f"another rank died or was cut off: see the output of each ({str(error)[:200]})"
        ) from error


class _Attendance:
    """Which ranks have come to the current operation, as far as they wait for the others there.

    Kept in the store that the ranks met in, which works while the operation hangs.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.operations = 0
        self._store, self._rank, self._world_size = store, rank, world_size
        self.report()

    def report(self) -> None:
        """Tells the others that this rank waits in its latest operation."""
        with suppress(RuntimeError):
            self._store.set(f"waits/{self._rank}", str(self.operations))

    def find_absent(self) -> list[int]:
        """The ranks that do not wait in this rank's latest operation."""
        self.report()
        time.sleep(_REPORT_AFTER)  # others may have come, but not reported yet

        def find() -> list[int]:
            latest = [int(self._store.get(f"waits/{rank}")) for rank in range(self._world_size)]
            return [rank for rank, operation in enumerate(latest) if operation < self.operations]

        try:
            return call_with_timeout(find, 2 * _REPORT_AFTER)
        except (RuntimeError, TimeoutError):  # the store is in rank 0's process, or on its node
            return [0]

    def leave(self) -> None:
        """Keeps rank 0, which may hold the store, until the others no longer need it."""
        with suppress(RuntimeError, TimeoutError):
            self._store.set(f"left/{self._rank}", "")
            if self._rank == 0:
                everyone = [f"left/{rank}" for rank in range(self._world_size)]
                timeout = timedelta(seconds=_LEAVE_TIMEOUT)
                call_with_timeout(lambda: self._store.wait(everyone, timeout), _LEAVE_TIMEOUT)


_attendance: _Attendance | None = None
