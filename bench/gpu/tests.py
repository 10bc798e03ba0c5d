"""Runs the tests that figures stand on, those of a batch side by side."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench import report

from .plan import TESTS

OUT_OF_TIME = "out of time"


class Part(NamedTuple):
    """How one process of pytest ended.

    outcome: "passed", "failed", "skipped" if all its tests were, or OUT_OF_TIME. said: its last line. printed: all.
    """

    command: str
    outcome: str
    said: str
    printed: str


def run(groups: Iterable[str], device: str, seconds: float, log: Path) -> dict[str, str]:
    """What the tests of these groups say, by group: "passed", "failed" or "skipped" and more, or OUT_OF_TIME.

    All they print is added to `log`. None are begun if they would not be done after `seconds`, and those that are not
    are stopped.
    """
    deadline, groups = time.monotonic() + seconds, list(groups)
    if device == "cuda" and seconds < max(TESTS[group].seconds for group in groups):
        return dict.fromkeys(groups, OUT_OF_TIME)
    jobs = [(group, place, names.format(device=device)) for group in groups for place, names in TESTS[group].parts]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        parts = list(pool.map(lambda job: _run_part(job[1], job[2], deadline), jobs))
    with log.open("a") as file:
        for part in parts:
            file.write(f"$ {part.command}\n{part.printed}\n")
    found = {}
    for group in groups:
        own = [part for job, part in zip(jobs, parts, strict=True) if job[0] == group]
        worst = min(own, key=lambda part: ("failed", OUT_OF_TIME, "skipped", "passed").index(part.outcome)).outcome
        said = "; ".join(part.said for part in own if part.outcome == worst)
        found[group] = OUT_OF_TIME if worst == OUT_OF_TIME else f"{worst}: {said}"
    return found


def _run_part(place: str, names: str, deadline: float) -> Part:
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=5", "-p", "no:cacheprovider", place, "-k", names]
    shown = f"python -m pytest {place} -k {names!r}"
    threads = str(max(1, (os.cpu_count() or 2) // 4))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            command,
            cwd=report.ROOT,
            env=environment | dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(0.1, deadline - time.monotonic()),
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        print(f"{shown}: {OUT_OF_TIME}", flush=True)
        return Part(shown, OUT_OF_TIME, OUT_OF_TIME, printed if isinstance(printed, str) else printed.decode())
    said = (ended.stdout.strip().splitlines() or ["nothing"])[-1]
    ran = re.search(r"\b\d+ (passed|failed|error)", said) is not None
    outcome = "failed" if ended.returncode not in (0, 5) else "passed" if ran else "skipped"  # 5: there are no tests
    print(f"{shown}:\n{ended.stdout[-6000:]}" if outcome == "failed" else f"{shown}: {said}", flush=True)
    return Part(shown, outcome, said, ended.stdout)
