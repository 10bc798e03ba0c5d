"""Runs in processes of their own that die where they are told to.

A server process, which has imported everything, forks them: each is there in milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.server import server
from zo_kernels.distributed.replicas import Replicas
from zo_kernels.optim import ZeroOrder
from zo_kernels.run import checkpoint, folder
from zo_kernels.run.folder import RunFolder
from zo_kernels.run.journal import Journal
from zo_kernels.train.__main__ import main
from zo_kernels.train.ranks import Ranks


def start(
    arguments: list[str], moment: str | None = None, number: int = 0, most_bytes: int | None = None
) -> multiprocessing.Process:
    """A process that trains, and kills itself at the `number`-th time (from 0) that it comes to a moment of MOMENTS.

    most_bytes: of any file that it can write, as if the disk were full then.
    """
    process = server.Process(target=_run, args=(arguments, moment, number, most_bytes))
    process.start()
    return process


def finish(arguments: list[str], moment: str | None = None, number: int = 0, most_bytes: int | None = None) -> int:
    """Its exit code."""
    process = start(arguments, moment, number, most_bytes)
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def launch(arguments: list[str], world_size: int, moments: Mapping[int, tuple[str, int]] | None = None) -> Launch:
    """Processes that train together, as torchrun starts them. moments: (moment, number) by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **{"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_RUN_ID": "job", "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_USE_AGENT_STORE": "False"},
    }
    launched = Launch([])
    for rank in range(world_size):
        moment, number = (moments or {}).get(rank, (None, 0))
        ours, theirs = multiprocessing.Pipe(duplex=False)
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = server.Process(target=_run, args=(arguments, moment, number, None, variables, theirs))
        process.start()
        theirs.close()
        launched.members.append((process, ours))
    return launched


class Launch:
    """Processes that train together."""

    def __init__(self, members: list[tuple[multiprocessing.Process, Any]]) -> None:
        self.members = members

    def signal(self, rank: int, number: int) -> None:
        pid = self.members[rank][0].pid
        assert pid is not None
        os.kill(pid, number)

    def finish(self) -> list[tuple[int, str]]:
        """Exit code and stderr of each."""
        ends = []
        for process, output in self.members:
            process.join(60)
            assert process.exitcode is not None, "a process hangs"
            try:
                ends.append((process.exitcode, output.recv()))
            except EOFError:
                ends.append((process.exitcode, ""))
        return ends


def _run(
    arguments: list[str],
    moment: str | None,
    number: int,
    most_bytes: int | None,
    variables: Mapping[str, str] | None = None,
    output: Any = None,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(variables or {})
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    if moment is not None:
        owner, name, when = MOMENTS[moment]
        _die_at(owner, name, when, number)
    said = io.StringIO()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        with contextlib.redirect_stderr(sys.stderr if output is None else said):
            code = main([*arguments, "--threads", "1"])
        if output is not None:
            output.send(said.getvalue())
        os._exit(code)


def _die_at(owner: Any, name: str, when: str, number: int) -> None:
    """Replaces a function by one that kills the process at its `number`-th call, before or after doing its work.

    when "flip": instead of dying, one bit of the parameters flips before the work.
    """
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 1 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == number + 1 and when == "flip":
            args[0].arena.flat.view(torch.int32)[3] ^= 1 << 22
        result = original(*args, **kwargs)
        if calls == number + 1 and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


MOMENTS: dict[str, tuple[Any, str, str]] = {
    "folder made": (folder, "config_digest", "before"),
    "journal begun": (RunFolder, "begin_metrics", "before"),
    "row not written": (Journal, "append", "before"),
    "row written": (Journal, "append", "after"),
    "step taken": (ZeroOrder, "apply", "after"),
    "checkpoint not begun": (RunFolder, "save_checkpoint", "before"),
    "checkpoint unnamed": (checkpoint, "_sync", "after"),
    "checkpoint written": (folder, "save_checkpoint", "after"),
    "scores not written": (Journal, "add_scores", "before"),
    "scores written": (Journal, "add_scores", "after"),
    "line not written": (RunFolder, "add_metrics", "before"),
    "weights not written": (RunFolder, "finish", "before"),
    "losses not sent": (Replicas, "exchange", "before"),
    "losses heard": (Replicas, "exchange", "after"),
    "group joined": (Ranks, "__init__", "after"),
    "bit flipped": (ZeroOrder, "estimate", "flip"),
}
"""Where a run may die: a function, and whether its work is done then."""


def runs_alike(a: Path, b: Path) -> bool:
    """Whether two runs left the same weights."""
    return (a / "weights.safetensors").read_bytes() == (b / "weights.safetensors").read_bytes()
