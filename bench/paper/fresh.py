"""Steps in a fresh process, which says how long they took and the most memory that it had."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.report import ROOT


def measure(steps: int, arguments: list[str], *, way: str = "run", processes: int = 1) -> dict[str, Any]:
    """Figures of `steps` steps with the flags of the trainer; those of the fastest step.

    way: "run", or "transformer" for one with the arguments parameters, context length and batch size.
    processes: more than one share the probes of each step.

    Returns peak_mb, of all processes together; base_mb, which is what they had before the model and the data, after
    a small step; wall_s and cpu_s. Without them, "failed" says why, such as a lack of memory.
    """
    child = ["-m", "bench.paper.fresh", way, str(steps), *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *child]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if len(found) != processes:
        last = (ran.stderr.strip().splitlines() or [f"ended by signal {-ran.returncode}"])[-1]
        return {"failed": last[:200]}
    together = {key: round(sum(each[key] for each in found), 1) for key in ("peak_mb", "base_mb")}
    return {**together, "wall_s": max(each["wall_s"] for each in found), "cpu_s": sum(each["cpu_s"] for each in found)}


def environment() -> dict[str, str]:
    """Of a child process: it finds this checkout, and its threads do not spin where others need the cores."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": paths}


def _take_steps(way: str, steps: int, arguments: list[str]) -> dict[str, float]:
    if way == "transformer":
        from .transformer import make_step, warm_up

        sizes = [int(each) for each in arguments]
        warm_up()
        base = _begin()
        step = make_step(*sizes)
    else:
        from .step import make_step as make_run_step
        from .step import warm_up as warm_up_run

        warm_up_run(arguments)
        base = _begin()
        step = make_run_step(arguments)
    times = []
    for number in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step(number)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = min(times)
    return {"peak_mb": _status("VmHWM"), "base_mb": base, "wall_s": wall, "cpu_s": cpu}


def _begin() -> float:
    """Memory now, in MB, from which on the peak counts: a small step has loaded all that any step loads."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return _status("VmRSS")


def _status(field: str) -> float:
    """Of this process, in MB. getrusage would not do: its peak includes that of the process before exec."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    # In one write: the lines of several processes must not run into each other.
    sys.stdout.write(json.dumps(_take_steps(sys.argv[1], int(sys.argv[2]), sys.argv[3:])) + "\n")
