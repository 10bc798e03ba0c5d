"""Ranks: processes of a gloo group on this machine, one thread each, that wait for work between measurements."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = 120.0
"""Seconds that a group may take for one piece of work."""


class Ranks:
    """world_size processes; with one alone there is no process group. Several such groups may wait side by side.

    Raises RuntimeError if the work fails on a rank or takes longer than two minutes; the processes are then ended.
    """

    def __init__(self, world_size: int) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([__name__, "zo_kernels"])
        self.world_size = world_size
        self._folder = tempfile.TemporaryDirectory()
        self._ends: list[Connection] = []
        self._processes: list[BaseProcess] = []
        store = str(Path(self._folder.name, "store"))
        for rank in range(world_size):
            mine, theirs = server.Pipe()
            process = server.Process(target=_serve, args=(theirs, rank, world_size, store), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(mine)
            self._processes.append(process)
        self.call(_nothing)

    def call(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What work(state, *arguments) returns on each rank, all at once. state: a dict that the rank keeps."""
        for end in self._ends:
            end.send((work, arguments))
        replies = []
        for rank, end in enumerate(self._ends):
            if not end.poll(_PATIENCE):
                raise RuntimeError(f"rank {rank} of {self.world_size} took longer than {_PATIENCE:g} s")
            reply, error = end.recv()
            if error is not None:
                raise RuntimeError(f"rank {rank} of {self.world_size} failed:\n{error}")
            replies.append(reply)
        return replies

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()


def _serve(end: Connection, rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world_size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    state: dict[str, Any] = {"rank": rank, "world_size": world_size}
    while True:
        try:
            work, arguments = end.recv()
        except EOFError:
            os._exit(0)  # no farewell: the others may have left
        try:
            end.send((work(state, *arguments), None))
        except Exception:
            end.send((None, traceback.format_exc()))


def _nothing(state: dict[str, Any]) -> None:
    pass
