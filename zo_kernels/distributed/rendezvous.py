"""How the processes of one launch find each other, after any restart, and whom each of them met.

torchrun restarts processes on a store that outlives them, with the addresses of the dead still in it; counts restarts
by node, and not at all when nodes come or go; and where another node becomes the first, leaves the rest the address of
their old store. So rank 0 opens a store of its own for each round and publishes its address, with a random name, on
every board it can reach: the launcher's store and the endpoint of torchrun's rendezvous. The others read the boards
until the store that is named there answers by that name; they join, and go when all have joined.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from torch.distributed import Store, TCPStore

from ..errors import ProcessGroupError, rank_names

T = TypeVar("T")

_ANSWER = 3.0
"""Seconds for one call of a store: those of torch wait for ever for a server that is stopped."""
_CONNECTED = 12.0
"""Seconds for connecting to one: torch looks up the name of the address, and a name server may be slow."""
_LONGEST_NAP = 0.5


def call_with_timeout(call: Callable[[], T], seconds: float) -> T:
    """call() in a thread, left behind if it takes longer: TimeoutError. Handlers of signals run meanwhile."""
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


def process_identity() -> str:
    """Of this process among all that ever were: machine and namespace, pid, time of its start."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return json.dumps([boot, os.readlink("/proc/self/ns/pid"), os.getpid(), start_time(os.getpid())])


def start_time(pid: int) -> int | None:
    """When a process of this machine was started, in ticks since boot; None if there is none of this pid."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def meet(rank: int, world_size: int, timeout: float) -> Store:
    """A store that exactly the processes of this round share: "join/RANK" there is the identity of each.

    Raises ProcessGroupError after `timeout` seconds, naming who is missing.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + timeout
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # the address is this round's rank 0's own to open
        return _meet_at(address, port, rank, world_size, deadline, timeout)
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    boards = _Boards([(address, port), *_endpoint()], f"zo_kernels/{run}/meeting")
    if rank == 0:
        hosts = [_outgoing_address(address, port), socket.getfqdn()]
        server = _serve(hosts[0], 0)
        entry = json.dumps([_name(server), world_size, hosts, server.port])
        _gather(server, world_size, deadline, timeout, lambda: boards.superseded(entry))
        return server
    naps = _Naps()
    while time.monotonic() < deadline:
        for entry in boards.entries():
            store = _open_entry(entry, rank, world_size)
            if store is not None and _wait_for_go(store, deadline, partial(boards.show, entry)):
                return store
        naps.sleep()
    raise ProcessGroupError(f"rank 0 did not meet rank {rank} within {timeout:g} s: its own output may say why")


def _meet_at(address: str, port: int, rank: int, world_size: int, deadline: float, timeout: float) -> Store:
    if rank == 0:
        server = _serve(address, port)
        _gather(server, world_size, deadline, timeout, lambda: False)
        return server
    naps = _Naps()
    while time.monotonic() < deadline:
        store = _connect(address, port)
        if store is not None and _join(store, rank) and _wait_for_go(store, deadline, lambda: True):
            return store
        naps.sleep()
    raise ProcessGroupError(
        f"rank {rank} did not find rank 0 at {address}:{port} within {timeout:g} s: check MASTER_ADDR and MASTER_PORT, "
        "and that rank 0 runs"
    )


def _serve(address: str, port: int) -> TCPStore:
    try:
        return TCPStore(address, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_CONNECTED))
    except RuntimeError as error:
        raise ProcessGroupError(f"rank 0 can't open a store at {address}:{port}: {error}") from error


def _name(server: Store) -> str:
    name = uuid.uuid4().hex
    server.set("name", name)
    return name


def _gather(server: Store, world_size: int, deadline: float, timeout: float, superseded: Callable[[], bool]) -> None:
    """Rank 0 waits for all the others and tells them to go, or of whom it waited for in vain."""
    server.set("join/0", process_identity())
    naps = _Naps()
    while absent := [rank for rank in range(1, world_size) if not server.check([f"join/{rank}"])]:
        if superseded():
            raise ProcessGroupError(
                "another rank 0 of this launch has taken over: this process belongs to a former round"
            )
        if time.monotonic() > deadline:
            message = f"{rank_names(absent)} of {world_size} did not join within {timeout:g} s: see the output of each"
            server.set("absent", message)
            time.sleep(2 * _LONGEST_NAP)  # so that the others read it
            raise ProcessGroupError(message)
        naps.sleep()
    server.set("go", "")


def _open_entry(entry: str, rank: int, world_size: int) -> Store | None:
    """The store that an entry of a board names, joined; None if nobody answers there, or it is of another round."""
    name, size, hosts, port = json.loads(entry)
    if size != world_size:
        return None
    for host in hosts:
        store = _connect(host, port)
        with suppress(RuntimeError, TimeoutError):
            if store is not None and call_with_timeout(partial(store.get, "name"), _ANSWER) == name.encode():
                return store if _join(store, rank) else None
    return None


def _join(store: Store, rank: int) -> bool:
    """False if another process has joined as this rank: that was a former round."""
    mine = process_identity()

    def join() -> bool:
        return store.compare_set(f"join/{rank}", "", mine) == mine.encode()

    with suppress(RuntimeError, TimeoutError):
        return call_with_timeout(join, _ANSWER)
    return False


def _wait_for_go(store: Store, deadline: float, current: Callable[[], bool]) -> bool:
    """Waits for rank 0's word; False if rank 0 is gone, or another has taken its place on the boards."""
    naps = _Naps()
    while time.monotonic() < deadline + _ANSWER:  # rank 0 may have begun later, and knows who is missing
        try:
            if call_with_timeout(lambda: store.check(["go"]), _ANSWER):
                return current()
            absent = call_with_timeout(lambda: store.get("absent").decode() if store.check(["absent"]) else "", _ANSWER)
        except (RuntimeError, TimeoutError):
            return False
        if absent:
            raise ProcessGroupError(absent)
        if not current():
            return False
        naps.sleep()
    return False


class _Naps:
    """Sleeps that grow, so that many processes don't storm one server."""

    def __init__(self) -> None:
        self._seconds = 0.02

    def sleep(self) -> None:
        time.sleep(self._seconds)
        self._seconds = min(1.5 * self._seconds, _LONGEST_NAP)


class _Boards:
    """Stores of the launcher on which rank 0 publishes where it is; those that can't be reached are tried again."""

    def __init__(self, addresses: list[tuple[str, int]], key: str) -> None:
        self._stores: dict[tuple[str, int], Store | None] = dict.fromkeys(addresses)
        self._published: set[tuple[str, int]] = set()
        self._key = key

    def entries(self) -> list[str]:
        """What is published now, on any of them."""
        found = [self._on(address, self._read) for address in self._stores]
        return list(dict.fromkeys(entry for entry in found if entry))

    def show(self, entry: str) -> bool:
        """Whether this one is among them."""
        return entry in self.entries()

    def superseded(self, mine: str) -> bool:
        """Publishes where that has not been done yet; True if another entry has replaced this one on a board."""

        def publish(store: Store) -> bool:
            store.set(self._key, mine)
            return True

        for address in self._stores:
            if address not in self._published:
                if self._on(address, publish):
                    self._published.add(address)
            elif self._on(address, self._read) not in (mine, None):
                return True
        return False

    def _read(self, store: Store) -> str | None:
        return store.get(self._key).decode() if store.check([self._key]) else None

    def _on(self, address: tuple[str, int], call: Callable[[Store], T]) -> T | None:
        store = self._stores[address] or _connect(*address)
        self._stores[address] = store
        if store is not None:
            try:
                return call_with_timeout(lambda: call(store), _ANSWER)
            except (RuntimeError, TimeoutError):
                self._stores[address] = None
        return None


def _connect(host: str, port: int) -> TCPStore | None:
    """A client of the store at an address; None if none answers (torch's own attempt would print pages)."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
        return call_with_timeout(
            lambda: TCPStore(
                host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_CONNECTED)
            ),
            _CONNECTED,
        )
    except (OSError, RuntimeError):  # TimeoutError is an OSError
        return None


def _outgoing_address(host: str, port: int) -> str:
    """This machine's own, on the way to another."""
    with suppress(OSError), socket.create_connection((host, port), timeout=1.0) as connection:
        return str(connection.getsockname()[0])
    return socket.gethostname()


def _endpoint() -> list[tuple[str, int]]:
    """Of torchrun's c10d rendezvous, which its workers are not told: from torchrun's variables or arguments."""
    given = {name: os.environ.get(f"PET_{name}", "") for name in ("RDZV_ENDPOINT", "RDZV_BACKEND")}
    with suppress(OSError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().replace("=", "\0").split("\0")
        for option, value in pairwise(words):
            name = option.lstrip("-").replace("-", "_").upper()
            if option.startswith("-") and name in given:
                given[name] = value
    host, _, port = given["RDZV_ENDPOINT"].rpartition(":")
    if given["RDZV_BACKEND"] != "c10d" or not host or not port.isdigit() or port == "0":
        return []
    return [(host.strip("[]"), int(port))]
