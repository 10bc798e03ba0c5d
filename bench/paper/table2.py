"""Table 2: the lowest validation loss of an LSTM on four tasks, by forward passes and by back-propagation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .options import Options
from .pages import COLORS, table
from .published import BEST_LOSSES
from .training import train
from .trials import Settings, Trials

SIZES = ("100k", "1m", "10m")
TASKS = {
    "copy": ("bench.paper.tasks:CountedCopy", "longer"),
    "reverse": ("bench.paper.tasks:CountedReverse", "longer"),
    "add": ("bench.paper.tasks:SumOfDigits", "longer"),
    "ptb": ("ptb", "validation"),
}
"""Tasks, and the set whose loss is that of the table."""

WAYS: dict[str, dict[str, str | int]] = {
    "CD-RGE@96": {"solver": "zo", "probes": 96},
    "CD-RGE@512": {"solver": "zo", "probes": 512},
    "BPTT, AdamW": {"solver": "bptt", "optimizer": "adamw"},
    "BPTT, SGD": {"solver": "bptt", "optimizer": "sgd"},
}

RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "CD-RGE@96": {"100k": (0.2, 0.3, 0.1), "1m": (0.07, 0.035, 0.14), "10m": (0.025,)},
    "CD-RGE@512": {"100k": (0.4, 0.8, 0.2), "1m": (0.14, 0.28, 0.07), "10m": (0.05,)},
    "BPTT, AdamW": {"100k": (0.003, 0.001, 0.01), "1m": (0.003, 0.001, 0.01), "10m": (0.001,)},
    "BPTT, SGD": {"100k": (1.0, 0.3, 3.0), "1m": (1.0, 0.3, 3.0), "10m": (0.3,)},
}
"""Learning rates of the search, the likeliest first."""

PTB_RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "CD-RGE@96": {"100k": (0.4, 0.8, 1.2), "1m": (0.14, 0.28, 0.1), "10m": (0.045,)},
    "CD-RGE@512": {"100k": (0.8, 1.6, 2.4), "1m": (0.28, 0.4, 0.2), "10m": (0.09,)},
    "BPTT, AdamW": {"100k": (0.01, 0.003, 0.03), "1m": (0.003, 0.001, 0.01), "10m": (0.001,)},
    "BPTT, SGD": {"100k": (3.0, 1.0, 10.0), "1m": (1.0, 0.3, 3.0), "10m": (0.3,)},
}

LONGEST = {"copy": "bench.paper.tasks:LongestCopy", "reverse": "bench.paper.tasks:LongestReverse"}
"""Tasks with the same validation that are trained on their longest examples alone."""

PRECISE: Settings = {"eps": 0.05}
FINE: Settings = {"precision": "bfloat16", "eps": 0.015625}
"""Flags of CD-RGE. A finer eps smooths the losses of large models less. bfloat16 takes three fifths of the time."""

STEPS = {"CD-RGE@96": 300, "CD-RGE@512": 100, "BPTT, AdamW": 200, "BPTT, SGD": 200}
PTB_STEPS = {"CD-RGE@96": 400, "CD-RGE@512": 150, "BPTT, AdamW": 600, "BPTT, SGD": 600}


def settings_of(
    task: str, size: str, way: str, rate: float, flags: Settings, *, longest: bool = False, quick: bool = False
) -> Settings:
    """The flags of a trial, but for the folder of the data."""
    is_text, is_slow = task == "ptb", size == "10m"
    steps = (PTB_STEPS if is_text else STEPS)[way]
    common: dict[str, str | int | float] = {
        "task": LONGEST[task] if longest else TASKS[task][0],
        "preset": f"paper-lstm-{size}",
        **WAYS[way],
        "batch_size": (64 if is_text else 32) // (2 if is_slow and "BPTT" not in way else 1),
        "lr": rate,
        **flags,
        "steps": steps // 3 if is_slow and not is_text else steps,
        "validate_every": 25 if is_text else 4,
    }
    if quick:
        common |= {"batch_size": 4, "steps": 2, "validate_every": 1}
        common |= {"eval_tokens": 64} if is_text else {"longer_length": 12}
    return common


def trials_of(options: Options) -> Iterator[tuple[str, Settings]]:
    """The task and the settings of each trial, in order of value: small models first. Quick: each task in one way."""
    if options.quick:
        for task, way in zip(TASKS, WAYS, strict=True):
            yield task, settings_of(task, "100k", way, RATES[way]["100k"][0], arithmetic(way)[0], quick=True)
        return
    for size in SIZES:
        for number in range(3):
            for task, way in product(TASKS, WAYS):
                rates = (PTB_RATES if task == "ptb" else RATES)[way][size]
                for rate in rates[number : number + 1]:
                    for flags, longest in product(arithmetic(way), (False, True) if task in LONGEST else (False,)):
                        yield task, settings_of(task, size, way, rate, flags, longest=longest)


def arithmetic(way: str) -> tuple[Settings, ...]:
    """Flags of a search that are about arithmetic."""
    return ({},) if "BPTT" in way else (PRECISE, FINE)


def measure(trials: Trials, options: Options, tasks: tuple[str, ...] = tuple(TASKS)) -> None:
    """Runs all trials of these tasks that are not done. Without a folder of the Penn Treebank its task is left out."""
    if options.data is None and "ptb" in tasks:
        print("without --data, ptb is left out")
    for task, settings in trials_of(options):
        if task not in tasks or (task == "ptb" and options.data is None):
            continue
        extra: dict[str, object] = {"threads": options.threads}
        extra |= {"data": options.data} if task == "ptb" else {}
        trials.run(settings, partial(train, settings, options.runs, extra, TASKS[task][1]))


def cell(trials: Trials, task: str, size: str, way: str) -> list[dict[str, Any]]:
    """The trials of a cell, on all lengths and on the longest."""
    names = [TASKS[task][0], *([LONGEST[task]] if task in LONGEST else [])]
    return [each for name in names for each in trials.select(task=name, preset=f"paper-lstm-{size}", **WAYS[way])]


def best_of(trials: Trials, task: str, size: str, way: str) -> dict[str, Any] | None:
    """The trial with the lowest loss of a cell, over the run, its learning rates and its lengths."""
    return min(cell(trials, task, size, way), key=lambda trial: trial["found"]["best"]["loss"], default=None)


def forwards_to(trial: dict[str, Any], goal: float) -> int | None:
    """Forward passes until the first validation at or below the goal."""
    found = trial["found"]
    return next((step * found["forwards"] for step, loss, _ in found["curve"] if round(loss, 2) <= goal), None)


def draw(trials: Trials, path: Path) -> bool:
    """The validations of the best trial of each cell at 100k and 1M, as far as there are any."""
    sizes = [z for z in SIZES[:2] if any(best_of(trials, task, z, way) for task in TASKS for way in WAYS)]
    if not sizes:
        return False
    figure = Figure(figsize=(11, 0.6 + 2.6 * len(sizes)), layout="constrained")
    grid = figure.subplots(len(sizes), len(TASKS), squeeze=False)
    for row, size in zip(grid, sizes, strict=True):
        for axis, task in zip(row, TASKS, strict=True):
            draw_curves(axis, trials, task, size)
            axis.set_title(f"{task}, {size}", fontsize=10)
        row[0].set_ylabel("validation loss, nats")
    for axis in grid[-1]:
        axis.set_xlabel("steps")
    entries = {
        label: handle for axis in grid.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return True


def draw_curves(axis: Any, trials: Trials, task: str, size: str) -> None:
    """Validation losses against steps, and the paper's best as a line."""
    for way in WAYS:
        if (trial := best_of(trials, task, size, way)) is not None:
            steps, losses, _ = zip(*trial["found"]["curve"], strict=True)
            axis.plot(steps, losses, color=COLORS[way], label=way, linewidth=1)
    goal = BEST_LOSSES[task][size]
    axis.axhline(goal, color="black", linewidth=0.8, linestyle="--", label="the paper's best")
    axis.set_ylim(goal - 0.4 if task != "ptb" else goal - 0.9, goal + 0.8)


def tables(trials: Trials) -> str:
    rows = []
    for task in TASKS:
        for size in SIZES:
            goal = BEST_LOSSES[task][size]
            if all(best_of(trials, task, size, way) is None for way in WAYS):
                rows.append([task, size, "all", "not yet measured", "", "", "", "", "", f"{goal:.2f}", "", ""])
                continue
            for way in WAYS:
                trial = best_of(trials, task, size, way)
                if trial is None:
                    rows.append([task, size, way, "not yet measured", "", "", "", "", "", f"{goal:.2f}", "", ""])
                    continue
                best, settings = trial["found"]["best"], trial["settings"]
                passes = forwards_to(trial, goal)
                rates = len({each["settings"]["lr"] for each in cell(trials, task, size, way)})
                rows.append(
                    [
                        task,
                        size,
                        way,
                        f"{best['loss']:.3f}",
                        f"{100 * best['accuracy']:.1f} %",
                        f"{best['step']}",
                        f"{settings['lr']:g} of {rates}",
                        f"{settings['eps']:g}" if "eps" in settings else "",
                        "" if task == "ptb" else "10" if settings["task"] in LONGEST.values() else "1 to 10",
                        f"{goal:.2f}",
                        "missed" if passes is None else "met" if round(best["loss"], 2) == goal else "beaten",
                        "" if passes is None else f"{passes:,}",
                    ]
                )
    head = ["task", "parameters", "way", "lowest loss", "accuracy there", "step", "lr, of how many", "eps", "lengths"]
    return table([*head, "the paper's best", "", "forward passes until the paper's best"], rows)
