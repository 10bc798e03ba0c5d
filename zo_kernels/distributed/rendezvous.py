"""How the processes of one launch find each other, after any restart.

Each start of all processes is a round. The processes of a round meet in a `torch.distributed.Store`: torchrun's own
where it shares that (TORCHELASTIC_USE_AGENT_STORE), else one that rank 0 opens at MASTER_ADDR:MASTER_PORT.

torchrun's store outlives the processes, so it still holds what earlier rounds wrote. TORCHELASTIC_RESTART_COUNT does
not tell rounds apart, because every node counts for itself. Rank 0 therefore draws a name for its round and publishes
it in the store. The other ranks join the round that is published, and move on when another one replaces it. Each draws
a name for itself, too, and starts only if rank 0 has read that name: what an earlier round left can't be played again.

All entries are signed (`signed_store.py`), since anybody who reaches the port may write there.
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
from typing import NamedTuple, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore

from ..errors import ProcessGroupError, first_line, format_ranks
from .launch import Launch
from .secret import find_secret
from .signed_store import SignedStore

T = TypeVar("T")


class Meeting(NamedTuple):
    """Where the processes of a round have met.

    store: A store that they alone use, whose entries are signed. bare: The same place without signatures.
    """

    store: SignedStore
    bare: Store


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


def meet(launch: Launch, timeout: float) -> Meeting:
    """Waits for all ranks of this round.

    Raises ProcessGroupError after `timeout` seconds, naming the ranks that are missing, and at once for an entry that
    was not written with this rank's secret.
    """
    rank, address, port = launch.rank, launch.address, launch.port
    secret = find_secret()
    deadline = time.monotonic() + timeout

    def find_others() -> Meeting:
        connect = _open_store if rank == 0 and not launch.shares_store else _connect
        bare = connect(launch, deadline)
        signed = SignedStore(bare, secret, f"the store at {address}:{port}")
        if rank == 0:
            name = _open_round(signed, launch.world_size, deadline, timeout)
        else:
            name = _join_round(signed, rank, launch.world_size, deadline + _GRACE, timeout)
        return Meeting(signed.under(name), PrefixStore(name, bare))

    try:
        return call_with_timeout(find_others, timeout + 2 * _GRACE)
    except ProcessGroupError:
        raise
    except (RuntimeError, TimeoutError, OSError, ValueError, MemoryError) as error:  # all that torch's clients raise
        advice = "check that rank 0 runs, and MASTER_ADDR and MASTER_PORT"
        if launch.shares_store:
            advice = "if nodes may come and go, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
        raise ProcessGroupError(
            f"rank {rank} did not meet the others at {address}:{port} within {timeout:g} s "
            f"({first_line(error)}): see the output of rank 0; {advice}"
        ) from error


def read_when_there(store: SignedStore, key: str, deadline: float) -> bytes:
    """Returns an entry as soon as it is there. Raises TimeoutError if that is not before the deadline."""
    for _ in _pause_until(deadline):
        if store.check([key]):
            return store.get(key)
    raise TimeoutError(f"nothing was written to {key}")


def _open_round(store: SignedStore, world_size: int, deadline: float, timeout: float) -> str:
    """Rank 0's part: publishes a round, waits for the others to join it, and tells them to go or who is missing."""
    name = f"{world_size}/{uuid.uuid4().hex}"
    round_store = store.under(name)
    store.set(_ROUND, name)
    joined: dict[int, str] = {}
    for _ in _pause_until(deadline):
        for rank in range(1, world_size):
            if rank not in joined and round_store.check([f"join/{rank}"]):
                joined[rank] = round_store.get(f"join/{rank}").decode()
        if len(joined) == world_size - 1:
            round_store.set("go", json.dumps([joined[rank] for rank in range(1, world_size)]))
            return name
    missing = [rank for rank in range(1, world_size) if rank not in joined]
    round_store.set("missing", json.dumps(missing))
    time.sleep(2 * _LONGEST_PAUSE)  # the store may end with this process, and the others are to read it first
    raise _missing_error(missing, world_size, timeout)


def _join_round(store: SignedStore, rank: int, world_size: int, deadline: float, timeout: float) -> str:
    """Joins the published round, once it is of this size and no other process has this rank in it."""
    me = uuid.uuid4().hex
    for _ in _pause_until(deadline):
        name = store.get(_ROUND).decode() if store.check([_ROUND]) else ""
        if not name.startswith(f"{world_size}/"):
            continue
        round_store = store.under(name)
        if round_store.compare_set(f"join/{rank}", "", me).decode() != me:
            continue
        if round_store.check(["go"]) and me in json.loads(round_store.get("go")):
            return name
        missing = json.loads(round_store.get("missing")) if round_store.check(["missing"]) else [rank]
        if rank not in missing:  # else it is an earlier round, which ended without this rank
            raise _missing_error(missing, world_size, timeout)
    raise TimeoutError("rank 0 has not started a round there")


def _missing_error(ranks: list[int], world_size: int, timeout: float) -> ProcessGroupError:
    return ProcessGroupError(
        f"{format_ranks(ranks)} of {world_size} did not join within {timeout:g} s: see the output of each"
    )


def _open_store(launch: Launch, deadline: float) -> Store:
    """Rank 0's own store. It listens to this node alone where that is enough; torch's would listen to all networks."""
    descriptor = None
    if launch.has_loopback_address:
        family = socket.AF_INET6 if ":" in launch.address else socket.AF_INET
        try:
            descriptor = socket.create_server((launch.address, launch.port), family=family, backlog=4096).detach()
        except OSError as error:
            raise RuntimeError(os.strerror(error.errno or 0).lower()) from error
    return TCPStore(
        launch.address,
        launch.port,
        is_master=True,
        wait_for_workers=False,
        timeout=_STORE_TIMEOUT,
        master_listen_fd=descriptor,
    )


def _connect(launch: Launch, deadline: float) -> Store:
    """A client of the store at an address, as soon as something listens there."""
    address, port = launch.address, launch.port
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
