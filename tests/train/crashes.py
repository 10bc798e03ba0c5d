"""Runs in processes of their own that die where they are told to.

A server process, which has imported everything, forks them: each is there in milliseconds.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zo_kernels import checkpoint
from zo_kernels.journal import Journal
from zo_kernels.optim import ZeroOrder
from zo_kernels.train import run_folder
from zo_kernels.train.__main__ import main
from zo_kernels.train.run_folder import RunFolder

sys.path.append(str(Path(__file__).parents[2]))  # the processes find this module by its name
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.train.crashes"])


def start(
    arguments: list[str], moment: str | None = None, number: int = 0, most_bytes: int | None = None
) -> multiprocessing.Process:
    """A process that trains, and kills itself at the `number`-th time (from 0) that it comes to a moment of MOMENTS.

    most_bytes: of any file that it can write, as if the disk were full then.
    """
    process = _server.Process(target=_run, args=(arguments, moment, number, most_bytes))
    process.start()
    return process


def finish(arguments: list[str], moment: str | None = None, number: int = 0, most_bytes: int | None = None) -> int:
    """Its exit code."""
    process = start(arguments, moment, number, most_bytes)
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _run(arguments: list[str], moment: str | None, number: int, most_bytes: int | None) -> None:
    torch.set_num_threads(1)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    if moment is not None:
        owner, name, when = MOMENTS[moment]
        _die_at(owner, name, when, number)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        os._exit(main([*arguments, "--threads", "1"]))


def _die_at(owner: Any, name: str, when: str, number: int) -> None:
    """Replaces a function by one that kills the process at its `number`-th call, before or after doing its work."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 1 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == number + 1 and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


MOMENTS: dict[str, tuple[Any, str, str]] = {
    "folder made": (run_folder, "config_digest", "before"),
    "journal begun": (RunFolder, "begin_metrics", "before"),
    "row not written": (Journal, "append", "before"),
    "row written": (Journal, "append", "after"),
    "step taken": (ZeroOrder, "step", "after"),
    "checkpoint not begun": (RunFolder, "save_checkpoint", "before"),
    "checkpoint unnamed": (checkpoint, "_sync", "after"),
    "checkpoint written": (run_folder, "save_checkpoint", "after"),
    "scores not written": (Journal, "add_scores", "before"),
    "scores written": (Journal, "add_scores", "after"),
    "line not written": (RunFolder, "add_metrics", "before"),
    "weights not written": (RunFolder, "finish", "before"),
}
"""Where a run may die: a function, and whether its work is done then."""


def runs_alike(a: Path, b: Path) -> bool:
    """Whether two runs left the same weights."""
    return (a / "weights.safetensors").read_bytes() == (b / "weights.safetensors").read_bytes()
