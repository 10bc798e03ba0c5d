"""`python -m bench.activity [part ...]`: activity perturbation against back-propagation and CD-RGE; about 10 minutes.

Parts: `curves` (Penn Treebank, the LSTM of 100k parameters: validation loss by time and forward passes; drawn as
docs/images/activity.png), `step` (time of a step), `memory` (peak at T = 1,000 and 100,000), `overfit` (steps to learn
one batch by heart). Each writes its figures to bench/results/activity.json. `draw` draws the curves there again and
measures nothing. On one thread times are CPU time, so that other processes on the machine count little. With --threads
they are wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.activity_plot import draw
from bench.report import IMAGES, RESULTS, machine, write
from zo_kernels.interrupts import InterruptGate
from zo_kernels.models import LSTM
from zo_kernels.optim import ActivityPerturbation
from zo_kernels.train.bptt import BPTT
from zo_kernels.train.build import Run, build
from zo_kernels.train.cli import parse
from zo_kernels.train.solvers import lr_at

PATH = RESULTS / "activity.json"
IMAGE = IMAGES / "activity.png"
ACTIVITY = ["--solver", "activity", "--eps", "0.01"]
SHORT = [*ACTIVITY, "--credit-length", "2"]
LOCAL = [*ACTIVITY, "--local-gradient"]
CURVES: dict[str, list[str]] = {
    "BPTT, AdamW": ["--solver", "bptt", "--lr", "0.01", "--steps", "450"],
    "activity, 1 probe": [*ACTIVITY, "--probes", "1", "--lr", "0.01", "--steps", "1200"],
    "activity, 1 probe, credit length 2": [*SHORT, "--probes", "1", "--lr", "0.01", "--steps", "1200"],
    "activity, 4 probes": [*ACTIVITY, "--probes", "4", "--lr", "0.01", "--steps", "400"],
    "activity, 1 probe, local gradient": [*LOCAL, "--probes", "1", "--lr", "0.01", "--steps", "1050"],
    "local gradient, no probes": [*LOCAL, "--credit-length", "1", "--lr", "0.01", "--steps", "1500"],
    "CD-RGE, 96 probes": ["--solver", "zo", "--eps", "0.05", "--lr", "1", "--steps", "60"],
}
"""Flags of each way to train. The numbers of steps take about the same time on one thread, or show where a way ends."""

OVERFIT: dict[str, list[str]] = {
    "BPTT, AdamW": ["--solver", "bptt", "--lr", "0.1"],
    "activity, 64 probes": [*ACTIVITY, "--probes", "64", "--lr", "0.1"],
    "activity, 64 probes, lr 0.03": [*ACTIVITY, "--probes", "64", "--lr", "0.03"],
    "local gradient, no probes": [*LOCAL, "--credit-length", "1", "--lr", "0.1"],
}


class Clock(NamedTuple):
    """How times are taken: CPU time of one thread, or wall-clock time of several."""

    threads: int

    @property
    def name(self) -> str:
        return "CPU time" if self.threads == 1 else "wall-clock time"

    def now(self) -> float:
        """In seconds, from any beginning."""
        return time.process_time() if self.threads == 1 else time.perf_counter()

    def described(self) -> dict[str, Any]:
        """With OMP_WAIT_POLICY, which decides how long threads of torch spin before they sleep."""
        policy = os.environ.get("OMP_WAIT_POLICY", "default")
        return {"threads": self.threads, "times": self.name, "wait_policy": policy}


def curve(name: str, data: str, clock: Clock) -> dict[str, Any]:
    """The losses of a run: [steps, forward passes, seconds, validation loss], validations not counted."""
    base = ["--task", "ptb", "--data", data, "--preset", "paper-lstm-100k", "--batch-size", "128"]
    run = build(parse([*base, *CURVES[name]]), InterruptGate())
    every, seconds, points = max(run.config.steps // 30, 1), 0.0, [(0, 0, 0.0, validation(run))]
    for step in range(run.config.steps):
        batch, lr = run.batch(step), lr_at(run.config, step)
        started = clock.now()
        run.solver.step(batch, lr)
        seconds += clock.now() - started
        done = step + 1
        if done % every == 0 or done == run.config.steps:
            points.append((done, done * run.solver.forwards, round(seconds, 2), validation(run)))
    print(f"{name}: {points[-1]}", flush=True)
    return {"name": name, "flags": " ".join(CURVES[name]), **clock.described(), "points": points}


def validation(run: Run) -> float:
    batches = run.task.validation_batches()["validation"]
    found = [run.model.score(*batch) for batch in batches]
    return round(sum(nats for nats, _ in found) / sum(int((b.targets >= 0).sum()) for b in batches), 4)


STEPS = {
    "H 240, 12 heads, B 128, T 10, V 50": (50, 128, 40),
    "H 240, 12 heads, B 1024, T 10, V 100": (100, 1024, 8),
}
"""Vocabulary, batch size and number of turns: the curves' model and batch, and a larger one."""


def step_times(clock: Clock) -> list[dict[str, Any]]:
    """Medians of steps taken in turn."""
    found = []
    for sizes, (vocabulary, batch_size, turns) in STEPS.items():
        ways = steps_of(vocabulary, batch_size)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns):
            for name, step in ways.items():
                started = clock.now()
                step()
                if turn > 0:
                    times[name].append(clock.now() - started)
        medians = {name: round(1e3 * statistics.median(each), 1) for name, each in times.items()}
        found.append({"sizes": sizes, **clock.described(), "ms": medians})
        print(found[-1], flush=True)
    return found


def steps_of(vocabulary: int, batch_size: int) -> dict[str, Callable[[], object]]:
    model = LSTM(vocabulary, vocabulary, 240, 12, seed=0)
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(vocabulary, (2, batch_size, 10), generator=generator)
    bptt = BPTT(model, "adamw", lr=1e-4)
    activity = ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=1e-4), probes=1)
    return {
        "BPTT": lambda: bptt.step(tokens, targets),
        "activity, 1 probe": lambda: activity.step(model.activity(tokens, targets)),
        "activity, 1 probe, local gradient": lambda: activity.step(
            model.activity(tokens, targets, local_gradient=True)
        ),
        "local gradient, no probes": lambda: activity.step(
            model.activity(tokens, targets, local_gradient=True, credit_length=1)
        ),
    }


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


def memory(_: Clock) -> dict[str, Any]:
    """Peak resident memory in MB of a process that takes one step on a long context on one thread, by its length."""
    found = {}
    for length in (1_000, 100_000):
        command = [sys.executable, "-c", _MEMORY, str(length)]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]) / 1e3
        found[str(length)] = round(peak, 1)
        print(f"T {length:,}: {peak:.1f} MB", flush=True)
    return {"sizes": "H 240, 12 heads, B 1, 1 probe", "peak_mb": found}


def overfit(clock: Clock) -> list[dict[str, Any]]:
    """Steps until the loss on one sequence of 100 random characters is below 0.1 nats."""
    found = []
    for name, flags in OVERFIT.items():
        base = ["--task", "overfit", "--preset", "paper-lstm-100k", "--alphabet-size", "100"]
        run = build(parse([*base, *flags]), InterruptGate())
        batch, steps, seconds = run.task.batch(0), 0, 0.0
        loss = run.model.score(*batch)[0] / batch.targets.numel()
        while loss >= 0.1 and steps < 100:
            started = clock.now()
            run.solver.step(batch, run.config.lr)
            seconds += clock.now() - started
            steps += 1
            loss = run.model.score(*batch)[0] / batch.targets.numel()
        flags_and_times = {"flags": " ".join(flags), **clock.described()}
        found.append({"name": name, **flags_and_times, "steps": steps, "loss": loss, "seconds": seconds})
        print(found[-1], flush=True)
    return found


def measure_curves(content: dict[str, Any], ways: list[str], data: str, clock: Clock) -> None:
    """Adds the curves of some ways to those that are known, and draws them all."""
    known = [curve for curve in content.get("curves", []) if curve["name"] not in ways]
    for name in ways:
        known.append(curve(name, data, clock))
        content["curves"] = known
        write(PATH, content)
    draw(content, IMAGE)


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.activity", description=__doc__)
    parts: dict[str, Callable[[Clock], Any]] = {"step": step_times, "memory": memory, "overfit": overfit}
    names = ["curves", *parts]
    parser.add_argument("parts", nargs="*", default=names, help=f"{', '.join(names)}, draw; all but draw if none")
    parser.add_argument("--data", help="folder of ptb.train.txt, for the curves")
    parser.add_argument("--ways", nargs="+", default=list(CURVES), choices=list(CURVES), help="of the curves")
    parser.add_argument("--threads", type=int, default=1, help="with more than 1, times are wall-clock seconds")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*names, "draw"}:
        parser.error(f"there is no part {min(unknown)}: give {', '.join(names)} or draw")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    content = json.loads(PATH.read_text()) if PATH.exists() else {}
    others = {c.get("threads", 1) for c in content.get("curves", []) if c["name"] not in options.ways}
    if "curves" in options.parts:
        if options.data is None:
            parser.error("the curves need --data, the folder of ptb.train.txt")
        if others - {options.threads}:
            parser.error(
                f"the other ways were measured with --threads {min(others)}: leave --ways out, or give as many"
            )
    torch.set_num_threads(options.threads)
    clock = Clock(options.threads)
    for part in options.parts:
        if part == "draw":
            draw(content, IMAGE)
            continue
        content |= {"machine": machine(), "command": "python -m bench.activity"}
        if part == "curves":
            measure_curves(content, options.ways, options.data, clock)
        else:
            content[part] = parts[part](clock)
        write(PATH, content)


if __name__ == "__main__":
    main()
