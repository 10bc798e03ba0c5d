"""Table 1: seconds, peak memory and dollars of a step, on this machine's processor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from zo_kernels.models.presets import PRESETS

from .fresh import measure as measure_fresh
from .options import Options
from .pages import table
from .published import DOLLARS_PER_GB_HOUR, DOLLARS_PER_TFLOP_HOUR, GIGABYTES, SECONDS_PER_STEP
from .trials import Settings, Trials

WAYS: dict[str, tuple[int, int]] = {
    "BPTT": (0, 1),
    "CD-RGE@96": (96, 1),
    "CD-RGE@512": (512, 1),
    "CD-RGE@96, 2 processes": (96, 2),
    "CD-RGE@512, 2 processes": (512, 2),
}
"""Probes and processes."""

MEASURED_PROBES = {"100k": 512, "1m": 96, "10m": 8, "100m": 2}
"""Most probes that are measured: the losses of a step are scaled from these to all of its probes."""

TOO_LARGE = {("100m", "BPTT")}
"""Not run: the activations alone are beyond 16 GB."""

BATCH_SIZE, CONTEXT_LENGTH = 1024, 10


def measure(trials: Trials, options: Options) -> None:
    for size in ("100k",) if options.quick else MEASURED_PROBES:
        for way, (probes, processes) in WAYS.items():
            if options.quick and (probes > 96 or processes > 1):
                continue
            if (size, way) in TOO_LARGE:
                continue
            settings = {
                "size": size,
                "way": way,
                "measured_probes": 2 if options.quick and probes else min(probes, MEASURED_PROBES[size]),
                "batch_size": 8 if options.quick else BATCH_SIZE,
                "context_length": CONTEXT_LENGTH,
                "threads": 2 // processes,
            }
            for part in ("memory", "time"):
                each = {**settings, "part": part}
                trials.run(each, partial(_step, each, processes), timed=part == "time")


def _step(settings: Settings, processes: int) -> dict[str, Any]:
    size, probes = str(settings["size"]), int(settings["measured_probes"])
    flags = ["--task", "overfit", "--preset", f"paper-lstm-{size}", "--alphabet-size", "100"]
    for name in ("batch_size", "context_length", "threads"):
        flags += [f"--{name.replace('_', '-')}", str(settings[name])]
    flags += ["--probes", str(probes)] if probes else ["--solver", "bptt", "--optimizer", "sgd"]
    # The first step also loads what the others find loaded.
    found = measure_fresh(2 if size in ("100k", "1m") else 1, flags, processes=processes)
    return found if settings["part"] == "time" else {k: v for k, v in found.items() if k not in ("wall_s", "cpu_s")}


def dollars(size: str, probes: int, gigabytes: float, seconds: float) -> float:
    """Of 100,000 steps, by the paper's prices: memory by the hour, and arithmetic by the TFLOP/s that it takes.

    Two operations for a parameter, a token and a forward pass; a backward pass counts as two.
    """
    preset = PRESETS[f"paper-lstm-{size}"]
    passes = 2 * probes if probes else 3
    tflop_hours = 2 * preset.parameters * BATCH_SIZE * CONTEXT_LENGTH * passes / 1e12 / 3600
    gb_hours = gigabytes * seconds / 3600
    return 100_000 * (DOLLARS_PER_GB_HOUR * gb_hours + DOLLARS_PER_TFLOP_HOUR * tflop_hours)


def _row(trials: Trials, size: str, way: str) -> dict[str, float | None]:
    """Seconds of a step with all probes, and gigabytes; None where they are not measured."""
    parts = {part: trials.select(size=size, way=way, part=part) for part in ("memory", "time")}
    found = {part: some[-1]["found"] for part, some in parts.items() if some and "failed" not in some[-1]["found"]}
    row: dict[str, float | None] = {"seconds": None, "gigabytes": None, "dollars": None}
    if "memory" in found:
        row["gigabytes"] = found["memory"]["peak_mb"] / 1e3
    if "time" in found:
        probes = WAYS[way][0]
        measured = parts["time"][-1]["settings"]["measured_probes"]
        seconds = found["time"]["wall_s"] * (probes / measured if probes else 1)
        row |= {"seconds": seconds, "dollars": dollars(size, probes, found["time"]["peak_mb"] / 1e3, seconds)}
    return row


def draw(trials: Trials, path: Path) -> bool:
    """Bars of the seconds of a step; nothing while there are none."""
    rows = {(size, way): _row(trials, size, way)["seconds"] for size in MEASURED_PROBES for way in WAYS}
    if not any(rows.values()):
        return False
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axis = figure.subplots()
    for place, way in enumerate(WAYS):
        places = [i + 0.16 * place for i in range(len(MEASURED_PROBES))]
        axis.bar(places, [rows[size, way] or 0.0 for size in MEASURED_PROBES], width=0.15, label=way)
    for i, seconds in enumerate(SECONDS_PER_STEP.values()):
        axis.plot((i - 0.1, i + 0.75), (seconds, seconds), color="black", label=None if i else "the paper's A40")
    axis.set_xticks([i + 0.32 for i in range(len(MEASURED_PROBES))], list(MEASURED_PROBES))
    axis.set(yscale="log", ylabel="seconds of a step")
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return True


def tables(trials: Trials) -> str:
    rows = []
    for size in MEASURED_PROBES:
        for way in WAYS:
            row = _row(trials, size, way)
            scaled = "" if WAYS[way][0] <= MEASURED_PROBES[size] else f", scaled from {MEASURED_PROBES[size]} probes"
            seconds, gigabytes, price = row["seconds"], row["gigabytes"], row["dollars"]
            missing = "not run" if (size, way) in TOO_LARGE else "not yet measured"
            rows.append(
                [
                    size,
                    way,
                    missing if seconds is None else f"{float(f'{seconds:.3g}'):,g}{scaled}",
                    missing if gigabytes is None else f"{gigabytes:.2f}",
                    missing if price is None else f"{price:,.2f}",
                    f"{SECONDS_PER_STEP[size]:g}",
                    f"{GIGABYTES[size]:g}",
                ]
            )
    head = ["parameters", "way", "seconds a step", "GB", "dollars for 100k steps", "paper, A40: seconds", "GB"]
    return table(head, rows)
