"""A process of small runs whose file operations are logged, or fail where they are told to."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.run.files.small_run import Ended, train
from zo_kernels.generate import __main__ as generate
from zo_kernels.plot import __main__ as plot
from zo_kernels.replay import __main__ as replay
from zo_kernels.train import __main__ as program

_REPOSITORY = Path(__file__).parents[3]


class Watched:
    """Starts such a process, for runs below the folder `root`. A context manager that ends it."""

    def __init__(self, root: Path, scratch: Path) -> None:
        library = scratch / "operations.so"
        source = Path(__file__).with_name("operations.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.run.files.watched"],
            cwd=_REPOSITORY,
            env={**os.environ, "LD_PRELOAD": str(library), "ZO_FILES_ROOT": f"{root}", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, out: Path, *, log: Path | None = None, **options: Any) -> tuple[Ended, int]:
        """Runs `train` there. Returns how it ended, and the number of operations that could have failed.

        log: file that the operations are appended to. at, error: The operation that fails (from 0) and its errno.
        lasting: All after it fail too. reads: Reading operations count too.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"out": str(out), "log": log and str(log), **options}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return Ended(*answer["ended"]), answer["count"]

    def read(self, run: Path, elsewhere: Path, **options: Any) -> tuple[Ended, int]:
        """Generates from a run, replays, draws and forks it, with results elsewhere. Returns as `train` does."""
        return self.train(run, readers=str(elsewhere), **options)

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def _read(run: Path, elsewhere: Path) -> Ended:
    fork = ["--fork", str(run), "--fork-step", "3", "--out", str(elsewhere / "fork")]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as error:
        codes = [
            generate.main(["--run", str(run), "--prompt", "a", "--save-state", str(elsewhere / "state")]),
            replay.main([str(run), "--out", str(elsewhere / "weights")]),
            plot.main([str(run), "--out", str(elsewhere / "picture.png")]),
            program.main(fork),
        ]
    return Ended(max(codes), printed.getvalue(), error.getvalue())


def _serve() -> None:
    library = ctypes.CDLL(None)
    library.zo_files_count.restype = ctypes.c_long
    library.zo_files_arm.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    for line in sys.stdin:
        order = json.loads(line)
        log, resume = order["log"], order.get("resume", False)
        library.zo_files_log(log and log.encode())
        library.zo_files_arm(
            order.get("at", -1), order.get("error", 0), order.get("lasting", False), order.get("reads", False)
        )
        if "readers" in order:
            ended = _read(Path(order["out"]), Path(order["readers"]))
        else:
            ended = train(Path(order["out"]), order["steps"], resume=resume)
        count = library.zo_files_count()
        library.zo_files_arm(-1, 0, 0, 0)
        library.zo_files_log(None)
        print(json.dumps({"ended": ended, "count": count}), flush=True)


if __name__ == "__main__":
    _serve()
