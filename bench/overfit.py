"""`python -m bench.overfit`: steps to learn one batch by heart, by forward passes and by BPTT; about 15 minutes.

For each of some small models, and each way to train it, the learning rates of a grid are tried one after the other,
each from the same initial parameters on the same batch: 100 random characters out of 100, one sequence. A trial ends
when the loss at the parameters themselves is below 0.1 nats, or it is plainly lost. Writes bench/results/overfit.json
and prints the table; all trials are in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch

from bench.report import RESULTS, machine
from zo_kernels.errors import DivergenceError, GridRangeError
from zo_kernels.interrupts import InterruptGate
from zo_kernels.train.build import build
from zo_kernels.train.cli import parse

GOAL = 0.1
MODELS = ("paper-lstm-100k", "paper-dnc-300k")
ZO = ["--solver", "zo", "--probes", "512", "--eps", "0.03"]
WAYS: dict[str, tuple[list[str], list[float]]] = {
    "CD-RGE, 512 probes": (ZO, [0.3, 1.0, 3.0, 0.55, 1.8, 5.5, 0.18]),
    "CD-RGE, 512 probes, momentum 0.9": ([*ZO, "--transforms", "momentum:0.9:32"], [0.1, 0.3, 1.0, 0.18, 0.55, 1.8]),
    "BPTT, SGD": (["--solver", "bptt", "--optimizer", "sgd"], [1.0, 3.0, 10.0, 1.8, 5.5, 18.0, 0.55]),
    "BPTT, AdamW": (["--solver", "bptt", "--optimizer", "adamw"], [0.03, 0.1, 0.01, 0.055, 0.18, 0.018]),
}
"""Flags and learning rates, the likeliest first: a trial that is slower than the best so far ends there."""


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.overfit", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--steps", type=int, default=1000, help="most steps of a trial")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / "overfit.json"
    figures = json.loads(path.read_text())["figures"] if path.exists() else []
    for model in options.models:
        for way in options.ways:
            found = {**best(model, way, options.steps), "threads": options.threads}
            figures = [f for f in figures if (f["model"], f["way"]) != (model, way)] + [found]
            print(row(found), flush=True)
            content = {"machine": machine(), "command": "python -m bench.overfit", "goal": GOAL}
            path.write_text(json.dumps({**content, "figures": figures}, indent=1) + "\n")
    print("\n" + table(figures))


def best(model: str, way: str, most_steps: int) -> dict[str, Any]:
    """The trial with the fewest steps to the goal, and all trials."""
    flags, rates = WAYS[way]
    trials: list[dict[str, Any]] = []
    for lr in rates:
        reached = [t["steps"] for t in trials if t["loss"] < GOAL]
        trials.append(trial(model, [*flags, "--lr", str(lr)], lr, min([most_steps, *reached])))
        print(f"    {model}, {way}, lr {lr:g}: {trials[-1]['steps']} steps, loss {trials[-1]['loss']:.3f}", flush=True)
    good = [t for t in trials if t["loss"] < GOAL]
    chosen = min(good, key=lambda t: (t["steps"], t["seconds"])) if good else min(trials, key=lambda t: t["loss"])
    return {"model": model, "way": way, **chosen, "trials": trials}


def trial(model: str, flags: list[str], lr: float, most_steps: int) -> dict[str, Any]:
    """One run. seconds: of its steps, the loss that is looked at after each not counted."""
    config = parse(["--task", "overfit", "--preset", model, "--alphabet-size", "100", *flags])
    run = build(config, InterruptGate())
    batch = run.task.batch(0)
    parameters = sum(p.numel() for p in run.model.parameters())
    loss = start = loss_of(run.model, batch)
    steps, seconds = 0, 0.0
    while loss >= GOAL and steps < most_steps and loss < 2 * start:
        started = time.perf_counter()
        try:
            run.solver.step(batch, lr)
        except (DivergenceError, GridRangeError):
            loss = math.inf
            break
        seconds += time.perf_counter() - started
        steps += 1
        loss = loss_of(run.model, batch)
    return {"lr": lr, "steps": steps, "seconds": seconds, "loss": loss, "start": start, "parameters": parameters}


@torch.no_grad()
def loss_of(model: Any, batch: Any) -> float:
    """At the parameters themselves."""
    return float(model.loss(*batch))


def row(f: dict[str, Any]) -> str:
    steps = f"{f['steps']:,}" if f["loss"] < GOAL else f"not in {f['steps']:,} (loss {f['loss']:.2f})"
    per_step = 1e3 * f["seconds"] / max(f["steps"], 1)
    return (
        f"| {f['model']} | {f['way']} | {f['lr']:g} | {steps} | {f['seconds']:.1f} | {per_step:.0f} | {f['threads']} |"
    )


def table(figures: list[dict[str, Any]]) -> str:
    head = "| model | way | its best lr | steps to loss < 0.1 | seconds | ms a step | threads |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(row, figures)])


if __name__ == "__main__":
    main()
