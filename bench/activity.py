"""`python -m bench.activity [part ...]`: activity perturbation against back-propagation and CD-RGE; about 10 minutes.

Parts: `curves` (Penn Treebank, the LSTM of 100k parameters: validation loss by CPU time and forward passes), `step`
(time of a step over one of back-propagation), `memory` (peak at T = 1,000 and 100,000), `overfit` (steps to learn one
batch by heart). Each writes its figures to bench/results/activity.json. Everything runs on one thread, and times are
CPU time, so that other processes on the machine count little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.report import RESULTS, machine
from zo_kernels.interrupts import InterruptGate
from zo_kernels.models import LSTM
from zo_kernels.optim import ActivityPerturbation
from zo_kernels.train.bptt import BPTT
from zo_kernels.train.build import Run, build
from zo_kernels.train.cli import parse
from zo_kernels.train.solvers import lr_at

PATH = RESULTS / "activity.json"
ACTIVITY = ["--solver", "activity", "--eps", "0.01"]
SHORT = [*ACTIVITY, "--credit-length", "2"]
LOCAL = [*ACTIVITY, "--local-gradient"]
CURVES: dict[str, list[str]] = {
    "BPTT, AdamW": ["--solver", "bptt", "--lr", "0.01", "--steps", "450"],
    "activity, 1 probe": [*ACTIVITY, "--probes", "1", "--lr", "0.01", "--steps", "1200"],
    "activity, 1 probe, credit length 2": [*SHORT, "--probes", "1", "--lr", "0.01", "--steps", "1200"],
    "activity, 4 probes": [*ACTIVITY, "--probes", "4", "--lr", "0.01", "--steps", "400"],
    "activity, 1 probe, local gradient": [*LOCAL, "--probes", "1", "--lr", "0.01", "--steps", "450"],
    "local gradient, no probes": [*LOCAL, "--credit-length", "1", "--lr", "0.01", "--steps", "900"],
    "CD-RGE, 96 probes": ["--solver", "zo", "--lr", "1", "--steps", "60"],
}
"""Flags of each way to train. The numbers of steps take about the same CPU time."""

OVERFIT: dict[str, list[str]] = {
    "BPTT, AdamW": ["--solver", "bptt", "--lr", "0.1"],
    "activity, 64 probes": [*ACTIVITY, "--probes", "64", "--lr", "0.1"],
    "activity, 64 probes, lr 0.03": [*ACTIVITY, "--probes", "64", "--lr", "0.03"],
    "local gradient, no probes": [*LOCAL, "--credit-length", "1", "--lr", "0.1"],
}


def curve(name: str, data: str) -> dict[str, Any]:
    """The losses of a run: [steps, forward passes, CPU seconds, validation loss], validations not counted."""
    base = ["--task", "ptb", "--data", data, "--preset", "paper-lstm-100k", "--batch-size", "128"]
    run = build(parse([*base, *CURVES[name]]), InterruptGate())
    every, seconds, points = max(run.config.steps // 30, 1), 0.0, [(0, 0, 0.0, validation(run))]
    for step in range(run.config.steps):
        batch, lr = run.batch(step), lr_at(run.config, step)
        started = time.process_time()
        run.solver.step(batch, lr)
        seconds += time.process_time() - started
        done = step + 1
        if done % every == 0 or done == run.config.steps:
            points.append((done, done * run.solver.forwards, round(seconds, 2), validation(run)))
    print(f"{name}: {points[-1]}", flush=True)
    return {"name": name, "flags": " ".join(CURVES[name]), "points": points}


def validation(run: Run) -> float:
    batches = run.task.validation_batches()["validation"]
    found = [run.model.score(*batch) for batch in batches]
    return round(sum(nats for nats, _ in found) / sum(int((b.targets >= 0).sum()) for b in batches), 4)


def step_times() -> dict[str, Any]:
    """Medians of steps taken in turn, and of their ratios to back-propagation."""
    model = LSTM(100, 100, 240, 12, seed=0)
    tokens, targets = torch.randint(100, (2, 1024, 10), generator=torch.Generator().manual_seed(0))
    bptt = BPTT(model, "adamw", lr=1e-4)
    activity = ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=1e-4), probes=1)
    ways: dict[str, Callable[[], object]] = {
        "BPTT": lambda: bptt.step(tokens, targets),
        "activity, 1 probe": lambda: activity.step(model.activity(tokens, targets)),
        "local gradient, no probes": lambda: activity.step(
            model.activity(tokens, targets, local_gradient=True, credit_length=1)
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(8):
        for name, step in ways.items():
            started = time.process_time()
            step()
            if turn > 0:
                times[name].append(time.process_time() - started)
    found = {name: round(1e3 * statistics.median(each), 1) for name, each in times.items()}
    print(found, flush=True)
    return {"sizes": "H 240, 12 heads, B 1024, T 10", "ms": found}


_MEMORY = """
import resource, sys, torch, zo_kernels as zo
torch.set_num_threads(1)
model = zo.models.LSTM(100, 100, 240, 12, seed=0)
opt = zo.optim.ActivityPerturbation(torch.optim.SGD(model.parameters(), lr=1e-4), probes=1)
opt.step(model.activity(*torch.randint(100, (2, 1, 10))))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
opt.step(model.activity(*torch.randint(100, (2, 1, int(sys.argv[1])))))
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory() -> dict[str, Any]:
    """Peak resident memory in MB of a process that takes one step on a long context, by its length."""
    found = {}
    for length in (1_000, 100_000):
        command = [sys.executable, "-c", _MEMORY, str(length)]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]) / 1e3
        found[str(length)] = round(peak, 1)
        print(f"T {length:,}: {peak:.1f} MB", flush=True)
    return {"sizes": "H 240, 12 heads, B 1, 1 probe", "peak_mb": found}


def overfit() -> list[dict[str, Any]]:
    """Steps until the loss on one sequence of 100 random characters is below 0.1 nats."""
    found = []
    for name, flags in OVERFIT.items():
        base = ["--task", "overfit", "--preset", "paper-lstm-100k", "--alphabet-size", "100"]
        run = build(parse([*base, *flags]), InterruptGate())
        batch, steps, seconds = run.task.batch(0), 0, 0.0
        loss = run.model.score(*batch)[0] / batch.targets.numel()
        while loss >= 0.1 and steps < 100:
            started = time.process_time()
            run.solver.step(batch, run.config.lr)
            seconds += time.process_time() - started
            steps += 1
            loss = run.model.score(*batch)[0] / batch.targets.numel()
        found.append({"name": name, "flags": " ".join(flags), "steps": steps, "loss": loss, "seconds": seconds})
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.activity", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["curves", "step", "memory", "overfit"])
    parser.add_argument("--data", help="folder of ptb.train.txt, for the curves")
    parser.add_argument("--ways", nargs="+", default=list(CURVES), choices=list(CURVES), help="of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(PATH.read_text()) if PATH.exists() else {}
    content |= {"machine": machine(), "command": "python -m bench.activity"}
    for part in options.parts:
        if part == "curves":
            if options.data is None:
                parser.error("the curves need --data, the folder of ptb.train.txt")
            before = [c for c in content.get("curves", []) if c["name"] not in options.ways]
            for name in options.ways:
                before.append(curve(name, options.data))
                content["curves"] = before
                PATH.write_text(json.dumps(content, indent=1) + "\n")
        else:
            content[part] = {"step": step_times, "memory": memory, "overfit": overfit}[part]()
            PATH.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
