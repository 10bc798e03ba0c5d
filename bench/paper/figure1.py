"""Figure 1: steps until a DNC knows one batch of 100 random characters by heart."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.overfit import GOAL, trial

from .options import Options
from .pages import COLORS, table
from .published import FEWER_STEPS
from .trials import Settings, Trials

MODELS = ("paper-dnc-300k", "paper-dnc-1m", "paper-dnc-3.5m")
_ZO = ["--solver", "zo", "--eps", "0.03"]
WAYS: dict[str, tuple[list[str], tuple[float, ...]]] = {
    "CD-RGE@512": ([*_ZO, "--probes", "512"], (0.3, 0.55, 0.18)),
    "BPTT, SGD": (["--solver", "bptt", "--optimizer", "sgd"], (1.0, 1.8, 0.55, 0.3)),
    "BPTT, AdamW": (["--solver", "bptt", "--optimizer", "adamw"], (0.055, 0.03, 0.1, 0.01)),
    "CD-RGE@96": ([*_ZO, "--probes", "96"], (0.18, 0.3, 0.1)),
    "CD-RGE@8": ([*_ZO, "--probes", "8"], (0.0055, 0.01, 0.018, 0.03)),
}
"""Flags, and learning rates of the search with the first seed: the likeliest first. The other seeds use the best, and
lower ones if that does not reach the goal."""

RATE_SCALES = {"paper-dnc-1m": 0.3, "paper-dnc-3.5m": 0.1}
"""Of CD-RGE's learning rates: the noise of an estimate grows with the number of parameters."""

SEEDS, MOST_STEPS = 5, 1000


def measure(trials: Trials, options: Options) -> None:
    torch.set_num_threads(options.threads)
    for model in MODELS[:1] if options.quick else MODELS:
        for seed in range(1 if options.quick else SEEDS):
            for way in WAYS:
                rates = rates_of(model, way)
                known = _best_rate(trials, model, way)
                if seed == 0:
                    some = list(rates[: 1 if options.quick else None])
                else:
                    some = [lr for lr in sorted(rates, reverse=True) if known is not None and lr <= known]
                for lr in some:
                    settings = {"model": model, "way": way, "seed": seed, "lr": lr, "most_steps": MOST_STEPS}
                    settings |= {"most_steps": 2} if options.quick else {}
                    if seed == 0 or not _reached(trials, model, way, seed):
                        trials.run(settings, partial(_trial, trials, settings))


def rates_of(model: str, way: str) -> tuple[float, ...]:
    """The learning rates of a search."""
    scale = RATE_SCALES.get(model, 1.0) if "RGE" in way else 1.0
    return tuple(float(f"{scale * rate:.2g}") for rate in WAYS[way][1])


def _reached(trials: Trials, model: str, way: str, seed: int) -> list[int]:
    """Steps of the trials of a seed that reached the goal."""
    some = trials.select(model=model, way=way, seed=seed)
    return [each["found"]["steps"] for each in some if each["found"]["loss"] < GOAL]


def _trial(trials: Trials, settings: Settings) -> dict[str, Any]:
    """Ends at the goal, or when it has taken more steps than the best learning rate of this seed."""
    way, lr = str(settings["way"]), float(settings["lr"])
    reached = _reached(trials, str(settings["model"]), way, int(settings["seed"]))
    flags = [*WAYS[way][0], "--lr", str(lr), "--seed", str(settings["seed"])]
    found = trial(str(settings["model"]), flags, lr, min([int(settings["most_steps"]), *reached]))
    return {key: found[key] for key in ("steps", "loss", "start", "parameters")}


def _best_rate(trials: Trials, model: str, way: str) -> float | None:
    some = trials.select(model=model, way=way, seed=0)
    return min(some, key=_rank)["settings"]["lr"] if some else None


def _rank(each: dict[str, Any]) -> tuple[float, float]:
    found = each["found"]
    return (found["steps"], 0.0) if found["loss"] < GOAL else (math.inf, found["loss"])


def _steps(trials: Trials, model: str, way: str) -> list[float]:
    """Of each seed, those of its best learning rate; infinite where the goal was not reached."""
    seeds = {each["settings"]["seed"] for each in trials.select(model=model, way=way)}
    return [min(map(_rank, trials.select(model=model, way=way, seed=seed)))[0] for seed in sorted(seeds)]


def draw(trials: Trials, path: Path) -> bool:
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    for place, way in enumerate(WAYS):
        for model in MODELS:
            steps = [count for count in _steps(trials, model, way) if math.isfinite(count)]
            if steps:
                x = trials.select(model=model, way=way)[0]["found"]["parameters"] * 1.03 ** (place - 2)  # side by side
                label = way if model == MODELS[0] else None
                spread = [[median(steps) - min(steps)], [max(steps) - median(steps)]]
                axis.errorbar([x], [median(steps)], spread, fmt="o", color=COLORS[way], capsize=3, label=label)
    axis.set(xscale="log", yscale="log", xlabel="parameters", ylabel="steps until the loss is below 0.1")
    if axis.has_data():
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return True


def tables(trials: Trials) -> str:
    rows = []
    for model in MODELS:
        if not trials.select(model=model):
            rows.append([model, "all", "", "not yet measured", "", "", ""])
            continue
        sgd = _steps(trials, model, "BPTT, SGD")
        for way in WAYS:
            steps = _steps(trials, model, way)
            if not steps:
                rows.append([model, way, "", "not yet measured", "", "", ""])
                continue
            each = ", ".join(f"{count:g}" if math.isfinite(count) else f"over {MOST_STEPS}" for count in steps)
            middle = median(steps)
            ratio = median(sgd) / middle if sgd and math.isfinite(middle) else math.nan
            fewer = "" if way == "BPTT, SGD" or math.isnan(ratio) else f"{ratio:.2g}"
            shown = f"{middle:g}" if math.isfinite(middle) else f"over {MOST_STEPS}"
            lr = _best_rate(trials, model, way)
            rows.append([model, way, f"{lr:g}", each, shown, fewer, f"up to {FEWER_STEPS}" if "RGE" in way else ""])
    head = ["model", "way", "its best lr", "steps, by seed", "median", "times fewer than SGD", "the paper"]
    return table(head, rows)
