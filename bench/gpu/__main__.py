"""`python -m bench.gpu`: the steps of Table 1, populations and the ops on a GPU; 7 minutes, twice.

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
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import zo_kernels as zo
from bench import report
from zo_kernels import _C
from zo_kernels.errors import first_line

from . import models, tests
from .plan import MINUTES, TESTS, Measure, plan
from .timing import Figure

_BEGUN = {"status": "begun"}
VARIABLES = {"PYTHONDONTWRITEBYTECODE": "1"}
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis",
}


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that it may take; the next run does the rest")
    parser.add_argument("--only", default="", metavar="WORDS", help="measures with them in their name")
    parser.add_argument("--out", type=Path, default=report.RESULTS, metavar="FOLDER", help="of all that is written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with small sizes")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no CUDA device; --device cpu rehearses", file=sys.stderr)
        return 2
    folder = options.out.resolve()
    os.environ.update(VARIABLES)
    if folder != report.RESULTS:  # whose cache is the user's own
        os.environ.update({name: str(folder / "cache" / place) for name, place in CACHES.items()})
    left = lambda: began + 60 * options.minutes - time.monotonic()  # noqa: E731
    measures = [m for m in plan(options.device) if options.only in m.name]
    path, content = begin(options.device, folder)
    known, verdicts = content["measures"], dict(content["tests"])
    for m in sorted(measures, key=lambda m: m.name in known):  # last what did not end: it hung, or was killed
        if known.get(m.name, _BEGUN) != _BEGUN:
            continue
        if m.group not in verdicts:
            batch = {n.group for n in measures if TESTS[n.group].batch == TESTS[m.group].batch} - set(verdicts)
            found = tests.run(sorted(batch), options.device, left(), path.with_suffix(".tests.log"))
            verdicts |= found
            content["tests"] |= {group: said for group, said in found.items() if said != tests.OUT_OF_TIME}
            report.write(path, content)
        if not verdicts[m.group].startswith("passed") or left() < m.seconds:
            print(f"{m.name}: not measured: tests {verdicts[m.group]}, {max(0.0, left()):.0f} s are left", flush=True)
            continue
        known[m.name] = _BEGUN
        report.write(path, content)
        known[m.name] = do(m, options.device, left())
        report.write(path, content)
    print("\n" + report.table([figure for found in known.values() for figure in found.get("figures", [])]))
    outcomes = [known.get(m.name, _BEGUN)["status"] for m in measures]
    print(f"\nwritten to {report.shown(path)}; {outcomes.count('begun')} of {len(measures)} measures are left", end="")
    print(" to the same command" if "begun" in outcomes else "")
    return 0 if all(outcome.startswith(("done", "refused")) for outcome in outcomes) else 1


def begin(device: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The results so far: none, if they are of another GPU, of other versions or of other sources."""
    sources = hashlib.sha256()
    for file in sorted(p for part in ("zo_kernels", "csrc") for p in (report.ROOT / part).rglob("*.[pch]*")):
        sources.update(file.read_bytes() if file.is_file() and file.suffix != ".pyc" else b"")
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu rehearsal"
    of = report.machine() | {"gpu": gpu, "cuda": torch.version.cuda, "cuda_build": _C.cuda_build()}
    of["sources"] = sources.hexdigest()[:16]
    of |= {name: version(name) if find_spec(name) else None for name in ("triton", "flashrnn")}
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.exists() else {"machine": {}}
    if all(found["machine"].get(key) == value for key, value in of.items() if key not in ("date", "commit")):
        return path, found
    return path, {"machine": of, "command": "python -m bench.gpu", "tests": {}, "measures": {}}


def do(m: Measure, device: str, seconds: float) -> dict[str, Any]:
    """{"status": "done", "refused: " and why, or what failed, "seconds", "figures"}"""
    figures: list[Figure] = []
    started, status = time.monotonic(), "done"
    backend = {"ops": device, "triton": "triton"}.get(m.group)
    faulthandler.dump_traceback_later(min(seconds, 60 + 4 * m.seconds), exit=True)  # a kernel may hang
    try:
        with zo.backend(backend) if backend else contextlib.nullcontext():
            figures.extend(m.function(device, *m.arguments))
    except models.Refused as error:
        status = f"refused: {error}"
    except Exception as error:  # out of memory, say: the next may fit
        status = f"{type(error).__name__}: {first_line(error)}"
    faulthandler.cancel_dump_traceback_later()
    took = round(time.monotonic() - started, 1)
    print(f"{m.name}: {status}, {took} s", flush=True)
    bars = {"at_least", "at_most"} if device == "cpu" else set()  # which a rehearsal can't miss
    figures = [{key: x for key, x in f.items() if key not in bars} | {"group": m.group} for f in figures]
    return {"status": status, "seconds": took, "figures": figures}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
