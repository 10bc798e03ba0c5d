"""The process group of a launch by torchrun or the like: joined after any restart, left without hanging, watched.

A process that is stopped or stuck answers nobody and dies of no SIGTERM; torchrun gives it 30 seconds. So a process
that waits for the others says so in the store that they met in, and the first whose patience ends names those that did
not come, and kills those of its own machine: all are to be restarted then in any case.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import ProcessGroupError, rank_names
from .rendezvous import call_with_timeout, meet, process_identity, start_time

_PATIENT = 1.0
"""Seconds that a process waits before it says so."""
_GOODBYE = 2.0
"""Seconds for leaving the group: an operation that is under way would hold it up."""
_LONGEST = timedelta(hours=1)
"""For an operation that nobody finishes by `finish`, whose patience is its caller's."""
_SIGNALS = 0.2
"""Seconds in which a handler of a signal is run while gloo waits: Python's run between two waits only."""


def is_launched() -> bool:
    """Whether this is one of several processes of torchrun or of a launcher that sets the same variables."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def process_group(device: str, timeout: float) -> Iterator[None]:
    """The default process group of this launch: gloo for "cpu"; NCCL for "cuda", one GPU a process, that of LOCAL_RANK.

    timeout: seconds for all to meet; then ProcessGroupError is raised, naming who is missing. Leaving takes seconds at
    most, whatever the others do.
    """
    global _peers
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.startswith("cuda"):
        if "LOCAL_RANK" not in os.environ:
            raise ProcessGroupError("LOCAL_RANK is not set: export it, or launch by torchrun")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    store = meet(rank, world_size, timeout)
    group_store = dist.PrefixStore("group", store)

    def form() -> _Peers:
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world_size, timeout=_LONGEST)
        return _Peers(store, rank, world_size)

    try:
        peers = call_with_timeout(form, timeout)
    except (RuntimeError, TimeoutError) as error:
        raise ProcessGroupError(f"the {backend} group was not formed: {error}") from error
    _peers = peers
    try:
        yield
        peers.leave()
    finally:
        _peers = None
        with suppress(TimeoutError):
            call_with_timeout(dist.destroy_process_group, _GOODBYE)


def finish(work: dist.Work, seconds: float, group: dist.ProcessGroup | None = None) -> None:
    """Waits for a collective operation of `group`; all ranks finish the same ones in the same order.

    Raises ProcessGroupError if another rank has died, or one does not answer for so long: it is named, and killed if it
    is of this machine. Handlers of signals run meanwhile, and what they raise is passed on.
    """
    on_gpu = dist.get_backend(group) == dist.Backend.NCCL
    peers = _peers
    if peers is not None:
        peers.exchanges += 1
    begun = time.monotonic()
    said = False
    while not work.is_completed():
        waited = time.monotonic() - begun
        if waited > seconds:
            raise ProcessGroupError(peers.find_missing(seconds) if peers else _no_answer("another rank", seconds))
        if waited > _PATIENT and not said and peers is not None:
            peers.say_waiting()
            said = True
        if on_gpu:  # its wait(timeout) would abort the group
            time.sleep(1e-4)
        else:
            with suppress(RuntimeError):  # its time is over, or the operation failed, which the last wait says
                work.wait(timedelta(seconds=min(_SIGNALS, max(seconds - waited, 1e-3))))
    try:
        work.wait()
    except RuntimeError as error:
        raise ProcessGroupError(
            f"another rank has died, or its network: its own output says why ({str(error)[:200]})"
        ) from error


class _Peers:
    """The processes of a round, and how far each of them says to have come."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.exchanges = 0
        self._store, self._rank, self._world_size = store, rank, world_size
        store.set(f"waiting/{rank}", "0")
        self._identities = [self._get(f"join/{rank}") for rank in range(world_size)]

    def _get(self, key: str) -> str:
        return self._store.get(key).decode()

    def say_waiting(self) -> None:
        with suppress(RuntimeError):
            self._store.set(f"waiting/{self._rank}", str(self.exchanges))

    def find_missing(self, seconds: float) -> str:
        """Names those that do not wait in this exchange, and kills those of this machine."""
        self.say_waiting()
        time.sleep(_PATIENT)  # others may have come, and not said so yet

        def find() -> list[int]:
            here = [int(self._get(f"waiting/{rank}")) >= self.exchanges for rank in range(self._world_size)]
            return [rank for rank, waits in enumerate(here) if not waits]

        try:
            absent = call_with_timeout(find, 2 * _PATIENT)
        except (RuntimeError, TimeoutError):  # the store is rank 0's
            absent = [0]
        killed = [rank for rank in absent if rank != self._rank and _kill(self._identities[rank])]
        message = _no_answer(rank_names(absent) if absent else "the network", seconds)
        return f"{message}; killed {rank_names(killed)}, of this machine" if killed else message

    def leave(self) -> None:
        """Rank 0, which has the store, waits for the others to need it no more."""
        with suppress(RuntimeError, TimeoutError):
            self._store.set(f"parted/{self._rank}", "")
            if self._rank == 0:
                everyone = [f"parted/{rank}" for rank in range(self._world_size)]
                call_with_timeout(lambda: self._store.wait(everyone, timedelta(seconds=_GOODBYE)), _GOODBYE)


_peers: _Peers | None = None


def _no_answer(who: str, seconds: float) -> str:
    return f"no answer of {who} for {seconds:g} s: stopped, stuck or cut off"


def _kill(other: str) -> bool:
    """Kills the process of an identity, if it is of this machine and still runs."""
    boot, namespace, pid, start = json.loads(other)
    if [boot, namespace] != json.loads(process_identity())[:2] or start_time(pid) != start:
        return False
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
