"""A process that computes steps: it may crash, hang or lose its CUDA context, and another takes its place."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_TRACE_LINES = 25


@dataclass(frozen=True)
class Reply:
    """What became of a call: its result, or in one line why there is none; timed_out if that is the time it took."""

    result: Any = None
    failure: str = ""
    trace: list[str] = field(default_factory=list)
    timed_out: bool = False


class Worker:
    """One child process; `call` runs functions in it. What they print goes to a file that only a crash reads."""

    def __init__(self, root: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used CUDA can't use it
        handle, log = tempfile.mkstemp(prefix="bench-gpu-", suffix=".log")
        os.close(handle)
        self._log = Path(log)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, log, str(root)), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, target: str, arguments: Mapping[str, Any], seconds: float) -> Reply:
        """target(**arguments), "module:function". After a failure the worker must be closed."""
        try:
            self._pipe.send((target, dict(arguments)))
            connection.wait([self._pipe, self._process.sentinel], seconds)
            if self._pipe.poll():
                return Reply(*self._pipe.recv())
        except (EOFError, OSError):
            pass
        self._process.join(1)
        if self._process.exitcode is None:
            return Reply(failure=f"ran past {seconds:.0f} s", trace=self._last_lines(), timed_out=True)
        return Reply(failure=f"its process {_ended(self._process.exitcode)}", trace=self._last_lines())

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._log.unlink(missing_ok=True)

    def _last_lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()[-_TRACE_LINES:]


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve(pipe: Connection, log: str, root: str) -> None:
    """The child: answers calls until the parent goes."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    threading.Thread(target=_leave_with_parent, args=(log,), daemon=True).start()
    sys.path.insert(0, root)
    tests = types.ModuleType("tests")  # the checkout's, which an installed package called tests would hide
    tests.__path__ = [os.path.join(root, "tests")]
    sys.modules["tests"] = tests
    while True:
        try:
            target, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(target, arguments))


def _leave_with_parent(log: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    connection.wait([parent.sentinel])
    os.unlink(log)
    os._exit(1)


def _answer(target: str, arguments: dict[str, Any]) -> tuple[Any, str, list[str]]:
    """Result, failure, trace: the fields of a Reply."""
    try:
        module, _, function = target.partition(":")
        result = getattr(importlib.import_module(module), function)(**arguments)
        _settle_device()
        return result, "", []
    except Exception as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        failure = said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
        return None, failure, traceback.format_exc().splitlines()[-_TRACE_LINES:]


def _settle_device() -> None:
    """Lets kernels still running fail here, in the step that launched them, and leaves the memory to the next."""
    torch = sys.modules.get("torch")
    gc.collect()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
