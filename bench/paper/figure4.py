"""Figure 4: Ackley's function in two dimensions, smoothed by Rademacher probes of eps 0.1 to 4.5."""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

import zo_kernels as zo
from zo_kernels.philox import probe_seeds

from .options import Options
from .pages import table
from .trials import Trials

EPS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5)
REACH, POINTS = 6.0, 601
_MEASURED = 25
"""Points of the line at which probes are drawn."""

Array = npt.NDArray[np.float64]


def ackley(points_ND: Array) -> Array:
    """Ackley's function of any dimension; its only global minimum is 0, at the origin."""
    distance = np.sqrt((points_ND**2).mean(-1))
    waves = np.cos(2 * math.pi * points_ND).mean(-1)
    return -20 * np.exp(-0.2 * distance) - np.exp(waves) + math.e + 20


def smoothed(points_N2: Array, eps: float) -> Array:
    """The mean over all four probes, which is E[f(x + eps p)]."""
    probes = np.array(list(product((-1.0, 1.0), repeat=2)))
    return np.mean([ackley(points_N2 + eps * probe) for probe in probes], axis=0)


def sampled(points_N2: Array, eps: float, probes: int) -> Array:
    """The mean of the two losses of each probe, as a step of CD-RGE measures them."""
    signs = [zo.ops.apply_probe_(torch.zeros(2), 1.0, int(seed)).double().numpy() for seed in probe_seeds(0, 0, probes)]
    return np.mean([ackley(points_N2 + side * eps * sign) for sign in signs for side in (1, -1)], axis=0)


def line() -> Array:
    """Points on the first axis, [POINTS, 2]."""
    x = np.linspace(-REACH, REACH, POINTS)
    return np.stack([x, np.zeros_like(x)], axis=1)


def minima(values: Array) -> int:
    """Interior points of the line that are below both neighbours by more than rounding."""
    inner = values[1:-1]
    return int(((inner < values[:-2] - 1e-12) & (inner < values[2:] - 1e-12)).sum())


def measure(trials: Trials, options: Options) -> None:
    for eps in EPS[::3] if options.quick else EPS:
        trials.run({"eps": eps, "probes": 64 if options.quick else 512}, partial(_trial, eps, options.quick))


def _trial(eps: float, quick: bool) -> dict[str, Any]:
    points = line()
    exact = smoothed(points, eps)
    some = points[:: POINTS // _MEASURED]
    found = sampled(some, eps, 64 if quick else 512)
    return {
        "minima": minima(exact),
        "lowest_at": round(abs(float(points[exact.argmin(), 0])), 3),
        "at_origin": round(float(smoothed(np.zeros((1, 2)), eps)[0]), 4),
        "x": [round(x, 3) for x in some[:, 0].tolist()],
        "sampled": [round(y, 4) for y in found.tolist()],
    }


def draw(trials: Trials, path: Path) -> bool:
    done = sorted(trials.done, key=lambda trial: trial["settings"]["eps"])
    figure = Figure(figsize=(10, 2.6 * -(-len(done) // 4)), layout="constrained")
    axes = figure.subplots(-(-len(done) // 4), 4, sharex=True, sharey=True, squeeze=False).ravel()
    points = line()
    for axis, trial in zip(axes, done, strict=False):
        eps = trial["settings"]["eps"]
        axis.plot(points[:, 0], ackley(points), color="#c5c9ce", linewidth=1, label="Ackley")
        axis.plot(points[:, 0], smoothed(points, eps), color="#1f77b4", label="smoothed, all probes")
        axis.plot(trial["found"]["x"], trial["found"]["sampled"], ".", color="#d62728", label="measured")
        axis.set_title(f"eps {eps:g}", fontsize=10)
    for axis in axes[len(done) :]:
        axis.set_axis_off()
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
    return True


def tables(trials: Trials) -> str:
    plain = ackley(line())
    rows = [["0 (Ackley itself)", str(minima(plain)), "0", "0"]]
    for trial in sorted(trials.done, key=lambda trial: trial["settings"]["eps"]):
        found = trial["found"]
        values = (found["minima"], found["lowest_at"], found["at_origin"])
        rows.append([f"{trial['settings']['eps']:g}", *(f"{value:g}" for value in values)])
    head = ["eps", "minima on the line", "the lowest is at ±x =", "value at the origin"]
    return table(head, rows)
