"""How the processes of one launch find each other, after any restart.

Each start of all processes is a round. The processes of a round meet in a `torch.distributed.Store`: torchrun's own
where it shares that (TORCHELASTIC_USE_AGENT_STORE), else one that rank 0 opens at MASTER_ADDR:MASTER_PORT.

torchrun's store outlives the processes, so it still holds what earlier rounds wrote. TORCHELASTIC_RESTART_COUNT does
not tell rounds apart, because every node counts for itself. Rank 0 therefore draws a name for its round and publishes
it in the store. The other ranks join the round that is published, and move on when another one replaces it.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

from torch.distributed import PrefixStore, Store, TCPStore

from ..errors import ProcessGroupError, format_ranks

T = TypeVar("T")

_ROUND = "zo_kernels/round"
"""The key of the published round."""
_STORE_TIMEOUT = timedelta(seconds=12)
"""For a request to a store, and for connecting to one: the name server may be slow."""
_GRACE = 3.0
"""Seconds that the others wait longer than rank 0, which may have started later and knows who is missing."""
_LONGEST_PAUSE = 0.5


def call_with_timeout(call: Callable[[], T], seconds: float) -> T:
    """Returns call(), which runs in a thread. After so many seconds, leaves the thread behind and raises TimeoutError.

    Torch waits without end for a store whose process is stopped. Signal handlers run during the wait.
    """
    outcome: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def meet(rank: int, world_size: int, timeout: float) -> Store:
    """Waits for all ranks of this round and returns a store that they alone use.

    Raises ProcessGroupError after `timeout` seconds, naming the ranks that are missing.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    deadline = time.monotonic() + timeout

    def find_others() -> Store:
        if rank != 0:
            return _join_round(_connect(address, port, deadline), rank, world_size, deadline + _GRACE, timeout)
        store = _connect(address, port, deadline) if is_shared else _open_store(address, port)
        return _open_round(store, world_size, deadline, timeout)

    try:
        return call_with_timeout(find_others, timeout + 2 * _GRACE)
    except ProcessGroupError:
        raise
    except (RuntimeError, TimeoutError) as error:
        advice = "check that rank 0 runs, and MASTER_ADDR and MASTER_PORT"
        if is_shared:
            advice = "if nodes may come and go, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
        raise ProcessGroupError(
            f"rank {rank} did not meet the others at {address}:{port} within {timeout:g} s "
            f"({str(error).splitlines()[0][:200]}): see the output of rank 0; {advice}"
        ) from error


def _open_round(store: Store, world_size: int, deadline: float, timeout: float) -> Store:
    """Rank 0's part: publishes a round, waits for the others to join it, and tells them to go or who is missing."""
    name = f"{world_size}/{uuid.uuid4().hex}"
    round_store = PrefixStore(name, store)
    store.set(_ROUND, name)
    missing = list(range(1, world_size))
    for _ in _pause_until(deadline):
        missing = [rank for rank in missing if not round_store.check([f"join/{rank}"])]
        if not missing:
            round_store.set("go", "")
            return round_store
    round_store.set("missing", json.dumps(missing))
    time.sleep(2 * _LONGEST_PAUSE)  # the store may end with this process, and the others are to read it first
    raise _missing_error(missing, world_size, timeout)


def _join_round(store: Store, rank: int, world_size: int, deadline: float, timeout: float) -> Store:
    """Joins the published round, once it is of this size and no other process has this rank in it."""
    me = uuid.uuid4().hex
    for _ in _pause_until(deadline):
        name = store.get(_ROUND).decode() if store.check([_ROUND]) else ""
        if not name.startswith(f"{world_size}/"):
            continue
        round_store = PrefixStore(name, store)
        if round_store.compare_set(f"join/{rank}", "", me).decode() != me:
            continue
        if round_store.check(["go"]):
            return round_store
        missing = json.loads(round_store.get("missing")) if round_store.check(["missing"]) else [rank]
        if rank not in missing:  # else it is an earlier round, which ended without this rank
            raise _missing_error(missing, world_size, timeout)
    raise TimeoutError("rank 0 has not started a round there")


def _missing_error(ranks: list[int], world_size: int, timeout: float) -> ProcessGroupError:
    return ProcessGroupError(
        f"{format_ranks(ranks)} of {world_size} did not join within {timeout:g} s: see the output of each"
    )


def _open_store(address: str, port: int) -> Store:
    return TCPStore(address, port, is_master=True, wait_for_workers=False, timeout=_STORE_TIMEOUT)


def _connect(address: str, port: int, deadline: float) -> Store:
    """A client of the store at an address, as soon as something listens there."""
    for _ in _pause_until(deadline):
        try:
            socket.create_connection((address, port), timeout=1.0).close()  # torch would print pages if this fails
        except OSError:
            continue
        return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
    raise TimeoutError("nothing listens there")


def _pause_until(deadline: float) -> Iterator[None]:
    """Yields until the deadline, with growing pauses, so that many processes don't overwhelm one server."""
    pause = 0.02
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_PAUSE)
