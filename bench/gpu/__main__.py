"""`python -m bench.gpu`: the ops, populations and the steps of Table 1 on a GPU; 8 minutes, or as many as you give it.

Each figure stands on tests of tests/gpu, which run first: where they do not pass, nothing of its group is measured. The
most valuable comes first, and each measure is kept: the same command goes on with what is left. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

import zo_kernels as zo
from bench import report
from zo_kernels.backends.recurrent.population_kernel import VARIABLE

from . import models, ops
from .timing import Figure

TESTS = {
    "ops": ("tests/gpu/test_ops.py", "{device}"),
    "triton": ("tests/gpu/test_ops.py", "triton"),
    "models": ("tests/gpu", "{device} and (population or updates or a_run)"),
    "flash": ("tests/gpu", "{device} and (population or updates or flashrnn and lstm and not slstm)"),
}
"""Of each group of measures: a file or folder, and the names of tests as pytest's -k has them."""

_BEGUN = {"status": "begun"}


class Measure(NamedTuple):
    """seconds: estimated, on an H200; one that takes four times as long and a minute ends the run."""

    group: str
    function: Callable[..., Iterator[Figure]]
    arguments: tuple[str, ...] = ()
    seconds: float = 8.0

    @property
    def name(self) -> str:
        return " ".join([self.group, self.function.__name__, *self.arguments])


def plan(device: str) -> list[Measure]:
    def steps(way: str, *sizes: str) -> list[Measure]:
        group, compiled = ("flash", 45.0) if way.startswith("flash") else ("models", 0.0)
        seconds = {"100k": 6.0, "1M": 8.0, "10M": 15.0, "100M": 12.0, "1.1B": 40.0}
        return [Measure(group, models.step, (way, size), seconds[size] + compiled) for size in sizes]

    on_ops = (ops.apply, ops.accumulate, ops.over_usual, ops.members, ops.lists, ops.drawn)
    measures = [
        *(Measure("ops", function) for function in on_ops),
        *steps("kernel", "100k"),
        *(Measure("models", models.correlation, (way,)) for way in ("kernel", "batched")),
        *steps("batched", "1M", "10M", "1.1B", "100M", "100k"),
        *(Measure("flash", models.population, (way,), 20.0) for way in ("kernel", "batched", "flash")),
        *steps("flash-bfloat16", "1.1B"),
        *(Measure("triton", function) for function in on_ops),
        Measure("flash", models.correlation, ("flash-bfloat16",)),
        *steps("flash-bfloat16", "100M", "10M", "1M", "100k"),
    ]
    absent = {"triton", "kernel", "1M", "10M", "100M"} if device == "cpu" else set()  # and one size of a step is enough
    return [m for m in measures if not absent & {m.group, *m.arguments}]


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="that it may take; the next run does the rest")
    parser.add_argument("--only", default="", metavar="WORDS", help="measures with them in their name")
    parser.add_argument("--out", type=Path, default=report.RESULTS, metavar="FOLDER", help="of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with small sizes")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no CUDA device; --device cpu rehearses", file=sys.stderr)
        return 2
    os.environ[VARIABLE] = "1"
    left = lambda: began + 60 * options.minutes - time.monotonic()  # noqa: E731
    measures = [m for m in plan(options.device) if options.only in m.name]
    path, content = begin(options.device, options.out)
    known, verdicts = content["measures"], dict[str, str]()
    for m in sorted(measures, key=lambda m: m.name in known):  # last what did not end: it hung, or was killed
        if known.get(m.name, _BEGUN) != _BEGUN:
            continue
        if m.group not in verdicts:
            verdicts[m.group] = content["tests"].get(m.group) or test(m.group, options.device, left())
        if not verdicts[m.group].startswith("passed") or left() < m.seconds:
            print(f"{m.name}: not measured: {verdicts[m.group]}, {left():.0f} s are left", flush=True)
            continue
        content["tests"][m.group], known[m.name] = verdicts[m.group], _BEGUN
        report.write(path, content)
        known[m.name] = do(m, options.device, left())
        report.write(path, content)
    print("\n" + report.table([figure for found in known.values() for figure in found.get("figures", [])]))
    undone = sum(known.get(m.name, _BEGUN) == _BEGUN for m in measures)
    print(f"\nwritten to {report.shown(path)}; {undone} of {len(measures)} measures are left to the same command")
    return 0 if all(known.get(m.name, _BEGUN)["status"] == "done" for m in measures) else 1


def begin(device: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The results so far: none, if they are of another GPU, of other versions or of other sources."""
    sources = hashlib.sha256()
    for file in sorted(p for part in ("zo_kernels", "csrc") for p in (report.ROOT / part).rglob("*.[pchs]*")):
        sources.update(file.read_bytes() if file.is_file() else b"")
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu rehearsal"
    of = report.machine() | {"gpu": gpu, "cuda": torch.version.cuda, "sources": sources.hexdigest()[:16]}
    of |= {name: version(name) if find_spec(name) else None for name in ("triton", "flashrnn")}
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    found = json.loads(path.read_text()) if path.exists() else {"machine": {}}
    if all(found["machine"].get(key) == value for key, value in of.items() if key not in ("date", "commit")):
        return path, found
    return path, {"machine": of, "command": "python -m bench.gpu", "tests": {}, "measures": {}}


def test(group: str, device: str, seconds: float) -> str:
    """ "passed: " and pytest's last line, or what it says otherwise."""
    place, names = TESTS[group]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", place]
    command += ["-k", names.format(device=device)]
    print("$ python", *command[1:], flush=True)
    try:
        run = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return "out of time for its tests"
    said = (run.stdout.strip().splitlines() or ["nothing"])[-1]
    passed = run.returncode == 0 and re.search(r"\b\d+ passed", said)  # and were not all skipped
    print(said if passed else run.stdout + run.stderr, flush=True)
    return f"passed: {said}" if passed else f"its tests say {said!r}"


def do(m: Measure, device: str, seconds: float) -> dict[str, Any]:
    """{"status": "done" or what failed, "seconds", "figures"}"""
    figures: list[Figure] = []
    started, status = time.monotonic(), "done"
    backend = {"ops": device, "triton": "triton"}.get(m.group)
    faulthandler.dump_traceback_later(min(seconds, 60 + 4 * m.seconds), exit=True)  # a kernel may hang
    try:
        with zo.backend(backend) if backend else contextlib.nullcontext():
            figures.extend(m.function(device, *m.arguments))
    except Exception as error:  # out of memory, say: the next may fit
        status = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    faulthandler.cancel_dump_traceback_later()
    took = round(time.monotonic() - started, 1)
    print(f"{m.name}: {status}, {took} s", flush=True)
    bars = {"at_least", "at_most"} if device == "cpu" else set()  # which a rehearsal can't miss
    figures = [{key: x for key, x in f.items() if key not in bars} | {"group": m.group} for f in figures]
    return {"status": status, "seconds": took, "figures": figures}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
