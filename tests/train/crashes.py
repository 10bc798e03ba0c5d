"""Runs in processes of their own, which die where they are told to.

A server process that has imported everything forks them, so each starts within milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests.distributed.cells import spy_on_cells
from tests.server import server
from zo_kernels.distributed.replicas import Replicas
from zo_kernels.optim import ZeroOrder
from zo_kernels.run import folder
from zo_kernels.run.folder import RunFolder
from zo_kernels.run.journal import Journal
from zo_kernels.train.__main__ import main
from zo_kernels.train.ranks import Ranks


def start(
    arguments: list[str], moment: str | None = None, number: int = 0, most_bytes: int | None = None
) -> multiprocessing.Process:
    """Starts a process that trains, and kills itself the `number`-th time (from 0) that it reaches one of MOMENTS.

    most_bytes: The largest file that it can write, as if the disk were full then.
    """
    process = server.Process(target=_run, args=(arguments, moment, number, most_bytes))
    process.start()
    return process


def finish(arguments: list[str], moment: str | None = None, number: int = 0, most_bytes: int | None = None) -> int:
    """Starts such a process and returns its exit code."""
    process = start(arguments, moment, number, most_bytes)
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def launch(
    arguments: list[str],
    world_size: int,
    moments: Mapping[int, tuple[str, int]] | None = None,
    cells: Path | None = None,
    *,
    own: Mapping[int, list[str]] | None = None,
    port: int | None = None,
) -> Launch:
    """Starts processes that train together, as torchrun does.

    moments: (moment, number) by rank.
    cells: A folder for the cells that each rank evaluates, which `read_cells` reads.
    own: More arguments by rank.
    port: That of the store of the launcher. None leaves it to rank 0 to open one.
    """
    shares_store = port is not None
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    shared = {
        **{"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_RUN_ID": "job", "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_USE_AGENT_STORE": str(shares_store)},
    }
    launched = Launch([])
    for rank in range(world_size):
        moment, number = (moments or {}).get(rank, (None, 0))
        ours, theirs = multiprocessing.Pipe(duplex=False)
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        file = None if cells is None else cells / f"{rank}.json"
        words = [*arguments, *(own or {}).get(rank, [])]
        process = server.Process(target=_run, args=(words, moment, number, None, variables, theirs, file))
        process.start()
        theirs.close()
        launched.processes.append((process, ours))
    return launched


class Launch:
    """Processes that train together."""

    def __init__(self, processes: list[tuple[multiprocessing.Process, Any]]) -> None:
        self.processes = processes

    def send_signal(self, rank: int, number: int) -> None:
        pid = self.processes[rank][0].pid
        assert pid is not None
        os.kill(pid, number)

    def finish(self) -> list[tuple[int, str]]:
        """Waits for the processes and returns the exit code and stderr of each."""
        ends = []
        for process, output in self.processes:
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
    cells_file: Path | None = None,
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
        with contextlib.redirect_stderr(sys.stderr if output is None else said), spy_on_cells() as cells:
            code = main([*arguments, "--threads", "1"])
        if cells_file is not None:
            cells_file.write_text(json.dumps(cells))
        if output is not None:
            output.send(said.getvalue())
        os._exit(code)


def read_cells(folder: Path, world_size: int) -> list[list[tuple[int, int]]]:
    """Returns the cells (seed of the probe, micro-batch) that each rank has evaluated, in order."""
    files = [folder / f"{rank}.json" for rank in range(world_size)]
    return [[(seed, part) for seed, part in json.loads(file.read_text())] for file in files]


def _die_at(owner: Any, name: str, when: str, number: int) -> None:
    """Replaces a function by one that kills the process at its `number`-th call, before or after doing its work.

    when: "before" or "after"; "flip" flips one bit of the parameters before the work, instead of dying.
    """
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 1 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == number + 1 and when == "flip":
            args[0].space.memory(args[0].space.trained[0]).view(torch.int32).view(-1)[3] ^= 1 << 22
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
    "checkpoint unnamed": (safetensors.torch, "save_file", "after"),
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
"""Where a run may die: a function, and whether it has done its work then."""


def runs_alike(a: Path, b: Path) -> bool:
    """Whether two runs left the same weights."""
    return (a / "weights.safetensors").read_bytes() == (b / "weights.safetensors").read_bytes()
