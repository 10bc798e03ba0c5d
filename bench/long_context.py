"""`python -m bench.long_context FILE`: memory and time of a step, 10 to 1,000,000 tokens of a text; about 30 minutes.

Trains on the characters of FILE, repeated as often as the longest context needs, with a batch of one sequence: by
zero-order steps of 8 probes, and by back-propagation, as a whole, checkpointed and truncated. Each measurement is a
fresh process, which reports its peak RSS, and the wall and CPU time of its fastest step. What would take more than
8 GB by the growth so far is not run, but extrapolated. Writes bench/results/long_context.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import RESULTS, machine, write

TOKENS = (10, 1_000, 100_000, 1_000_000)
STEPS = {10: 20, 1_000: 5}
"""Steps of a measurement; 1 for longer contexts."""

MODELS = {"default": [], "paper-lstm-100k": ["--preset", "paper-lstm-100k"]}
WAYS = {
    "zo": ["--probes", "8"],
    "zo, segments of 1000": ["--probes", "8", "--segment-length", "1000"],
    "bptt": ["--solver", "bptt"],
    "bptt, checkpoints every 1000": ["--solver", "bptt", "--checkpoint-length", "1000"],
    "bptt, segments of 1000": ["--solver", "bptt", "--segment-length", "1000"],
}
MOST_MB = 8_000.0


def main(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    figures: dict[str, dict[str, dict[str, Any]]] = {model: {way: {} for way in WAYS} for model in MODELS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "long.txt")
        data.write_text(text * (20 * (max(TOKENS) + 1) // len(text) + 1), encoding="utf-8")
        for tokens in TOKENS:
            for model in MODELS:
                for way in WAYS:
                    figures[model][way][str(tokens)] = found = _measure(data, model, way, tokens, figures[model][way])
                    print(f"{model:16} {way:29} {tokens:9,} tokens  {found}", flush=True)
                    content = {"machine": machine(), "command": "python -m bench.long_context FILE", "figures": figures}
                    write(RESULTS / "long_context.json", content)


def _measure(data: Path, model: str, way: str, tokens: int, before: dict[str, Any]) -> dict[str, float]:
    """The figures of a fresh process, or its peak by the growth between the two contexts before."""
    known = [(int(length), found["peak_mb"]) for length, found in before.items() if "peak_mb" in found]
    if len(known) > 1:
        (short, small), (long, large) = known[-2:]
        expected = large + (large - small) / (long - short) * (tokens - long)
        if expected > MOST_MB:
            return {"extrapolated_peak_mb": expected}
    flags = ["--task", "text", "--data", str(data), "--context-length", str(tokens), "--batch-size", "1"]
    arguments = [*flags, *MODELS[model], *WAYS[way]]
    command = [sys.executable, "-m", "bench.long_context", "--steps-of", str(STEPS.get(tokens, 1)), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def _take_steps(steps: int, arguments: list[str]) -> dict[str, float]:
    from zo_kernels.interrupts import InterruptGate
    from zo_kernels.train.build import build
    from zo_kernels.train.cli import parse

    run = build(parse(arguments), InterruptGate())
    times = []
    for step in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        run.solver.step(run.task.batch(step), 1e-3)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = min(times)
    return {"peak_mb": peak, "wall_s": wall, "cpu_s": cpu}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.argv[1] == "--steps-of":
        print(json.dumps(_take_steps(int(sys.argv[2]), sys.argv[3:])))
    else:
        main(Path(sys.argv[1]))
