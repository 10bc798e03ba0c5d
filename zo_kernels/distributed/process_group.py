"""The process group of a launch by torchrun, or by a launcher that sets the same variables.

The group forms again after any restart, and is left without hanging. A rank that loses patience with another raises
ProcessGroupError, which names the ranks that did not answer, and leaves the rest to the launcher: torchrun stops all
processes when one exits with an error, by SIGTERM and 30 seconds later by SIGKILL, and starts them again.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist

from ..errors import ProcessGroupError, UsageError, first_line, format_ranks
from .agreement import Terms, agree, take_own_gpus
from .launch import Launch, read_launch, read_local_rank
from .rendezvous import call_with_timeout, meet
from .secret import find_secret
from .signed_store import SignedStore

_REPORT_AFTER = 1.0
"""Seconds that a rank waits before it tells the others so."""
_LEAVE_TIMEOUT = 2.0
"""Seconds for leaving the group, which an unfinished operation would hold up."""
_GROUP_TIMEOUT = timedelta(hours=1)
"""Torch's own, for operations that nobody waits for by `wait_for`."""
_SIGNAL_INTERVAL = 0.2
"""Seconds that a wait inside gloo lasts: Python runs signal handlers only between two of them."""


@contextmanager
def process_group(device: str, timeout: float, terms: Terms | None = None) -> Iterator[None]:
    """The default process group of this launch.

    device: "cpu" for a gloo group; "cuda" for one of NCCL, in which each process uses the GPU of its LOCAL_RANK.
    timeout: seconds for all processes to meet.
    terms: what must be the same on all ranks, by name.

    Raises ProcessGroupError if they don't meet, naming the ranks that are missing, and UsageError if their terms
    differ, if two of them would share a GPU, or if the variables of the launcher make no sense. Leaving takes a few
    seconds at most, whatever the other ranks do.
    """
    global _attendance
    launch = read_launch()
    if launch is None:
        raise UsageError("RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not all set: start this by torchrun")
    if device.startswith("cuda") and launch.local_rank is None:
        raise UsageError("LOCAL_RANK is not set: export it, or launch by torchrun")
    backend = "nccl" if device.startswith("cuda") else "gloo"
    meeting = meet(launch, timeout)
    group_store = meeting.store.under("group")  # kept until the group is left
    if terms is not None:
        agree(meeting.store, launch.rank, launch.world_size, terms, timeout)
    if launch.local_rank is not None and backend == "nccl":
        take_own_gpus(meeting.store, launch.rank, launch.world_size, _name_of_gpu(launch.local_rank), timeout)
        use_own_gpu()

    def form_group() -> _Attendance:
        # NCCL clones its store, and torch would not keep the clone of one that is written in Python.
        with _stay_on_node(launch):
            dist.init_process_group(
                backend,
                store=meeting.bare if backend == "nccl" else group_store,
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=_GROUP_TIMEOUT,
            )
        return _Attendance(meeting.store, launch)

    try:
        _attendance = call_with_timeout(form_group, timeout)
    except ProcessGroupError:
        raise
    except (RuntimeError, TimeoutError) as error:
        raise ProcessGroupError(f"the {backend} group could not be formed: {first_line(error)}") from error
    try:
        yield
    except BaseException:
        if dist.group.WORLD is not None and backend == "nccl":  # it would wait for its operations
            with suppress(TimeoutError):
                call_with_timeout(dist.group.WORLD.abort, _LEAVE_TIMEOUT)
        raise
    finally:
        _attendance.leave()
        _attendance = None
        with suppress(TimeoutError):
            call_with_timeout(dist.destroy_process_group, _LEAVE_TIMEOUT)


def use_own_gpu() -> None:
    """Makes the GPU of LOCAL_RANK the current one, if there is one: else every rank takes memory of the first GPU."""
    number = read_local_rank()
    if number is not None and number < torch.cuda.device_count():
        torch.cuda.set_device(number)


def _name_of_gpu(number: int) -> str:
    """A name that no other GPU has, whatever CUDA_VISIBLE_DEVICES hides; "" if there is no GPU of this number."""
    return str(torch.cuda.get_device_properties(number).uuid) if number < torch.cuda.device_count() else ""


def shared_store() -> SignedStore:
    """A store for the ranks of the default process group, whose entries are signed. All ranks must ask for it alike.

    It is empty: each call returns another part of the store in which the ranks have met. Raises ProcessGroupError if
    the group is the user's own, and there is no secret to sign with.
    """
    if _attendance is not None:
        store = _attendance.store
    else:
        whole = dist.distributed_c10d._get_default_store()
        store = SignedStore(whole, find_secret(), "the store of the process group")
    return store.under(f"part/{next(_parts)}")


@contextmanager
def _stay_on_node(launch: Launch) -> Iterator[None]:
    """Lets gloo listen to this node alone if all processes are on it, unless the user has chosen an interface."""
    name = "GLOO_SOCKET_IFNAME"
    loopback = next((found for _, found in socket.if_nameindex() if found in ("lo", "lo0")), None)
    if not launch.is_on_one_node or loopback is None or name in os.environ:
        yield
        return
    os.environ[name] = loopback
    try:
        yield
    finally:
        del os.environ[name]


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

    def __init__(self, store: SignedStore, launch: Launch) -> None:
        self.operations = 0
        self.store, self._rank, self._world_size = store, launch.rank, launch.world_size
        self._holds_store = launch.rank == 0 and not launch.shares_store
        self.report()

    def report(self) -> None:
        """Tells the others that this rank waits in its latest operation."""
        with suppress(RuntimeError):
            self.store.set(f"waits/{self._rank}", str(self.operations))

    def find_absent(self) -> list[int]:
        """The ranks that do not wait in this rank's latest operation."""
        self.report()
        time.sleep(_REPORT_AFTER)  # others may have come, but not reported yet

        def find() -> list[int]:
            latest = [int(self.store.get(f"waits/{rank}")) for rank in range(self._world_size)]
            return [rank for rank, operation in enumerate(latest) if operation < self.operations]

        try:
            return call_with_timeout(find, 2 * _REPORT_AFTER)
        except (RuntimeError, TimeoutError):  # the store is in rank 0's process, or on its node
            return [0]

    def leave(self) -> None:
        """Keeps rank 0, if it holds the store, until the others no longer need it: they may read its last words."""
        with suppress(RuntimeError, TimeoutError):
            call_with_timeout(lambda: self.store.set(f"left/{self._rank}", ""), _LEAVE_TIMEOUT)
            if self._holds_store:
                everyone = [f"left/{rank}" for rank in range(self._world_size)]
                timeout = timedelta(seconds=_LEAVE_TIMEOUT)
                call_with_timeout(lambda: self.store.wait(everyone, timeout), _LEAVE_TIMEOUT)


_attendance: _Attendance | None = None
_parts = count()
