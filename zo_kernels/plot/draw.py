"""The picture of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from ..run.best import set_of
from ..run.metrics import EXACT, MEMORY
from .losses import DPI, as_text, draw_references, mark_best, tidy
from .runs import NUMERIC, PlottedRun, labels

_COLORS = ("#3b6fb6", "#d1495b", "#edae49", "#3a7d44", "#8e6cae", "#56b4c4", "#6b6b6b", "#a0522d")
_Line = Literal["-"] | tuple[int, tuple[float, ...]]
_LINES: tuple[_Line, ...] = ("-", (0, (5, 2.5)), (0, (1.2, 1.8)), (0, (6, 2, 1.2, 2)))
"""Solid, dashed, dotted, and dashes with dots: lengths in line widths."""
_LEAST_WINDOWS = 10
"""A running mean moves a crossing by up to half its window, so that it is for runs of many windows only."""

X_LABELS = {"steps": "step", "forwards": "forward passes", "seconds": "training time (s)", "tokens": "tokens read"}
Y_LABELS = {"loss": "loss (nats per token)", "accuracy": "accuracy", "memory": "peak memory (MB)"}


class Curve(NamedTuple):
    """What to draw of each run. name: for the legend. metric: its name in metrics.jsonl."""

    name: str
    metric: str


def curves_of(y: str, sets: Sequence[str]) -> list[Curve]:
    """The curves of a y: of each set, also of its answers that are right as a whole; memory has no sets."""
    if y == "memory":
        return [Curve(name, metric) for name, metric in zip(("CPU", "GPU"), MEMORY, strict=True)]
    found = [Curve(name, f"{name}_{y}") for name in sets]
    if y == "accuracy":
        exact = {name: Curve(f"{name}, exact", f"{name}{EXACT}_{y}") for name in sets if not name.endswith(EXACT)}
        found = [curve for each in found for curve in (each, exact.get(each.name)) if curve is not None]
    return found


def mean_of(values: Sequence[float], curve: Curve, window: int) -> np.ndarray | None:
    """The running mean to draw over the training losses of a long run; None for other curves."""
    is_noisy = curve.metric == "train_loss" and window > 1
    return running_mean(values, window) if is_noisy and len(values) >= _LEAST_WINDOWS * window else None


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Averages the `window` values around each. Near the ends the window shrinks, to the same length on both sides."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(at, len(values) - 1 - at))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def draw(
    runs: Sequence[PlottedRun], x: Sequence[str], y: str, curves: Sequence[Curve], smooth: int, log_y: bool
) -> Figure:
    """Draws a panel for each x. Runs differ in colour, curves in line style. Arguments: as for `plot_runs`."""
    figure = Figure(figsize=(1.5 + 4.5 * len(x), 4.4 + 0.22 * len(runs)), dpi=DPI, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(x), sharey=True, squeeze=False)[0]
    colors = _COLORS if len(runs) <= len(_COLORS) else matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(runs)))
    for axes, quantity in zip(panels, x, strict=True):
        for run, color in zip(runs, colors, strict=False):
            for curve, line in zip(curves, _LINES * len(curves), strict=False):
                at, values = run.curve(quantity, curve.metric)
                if not values:
                    continue
                style = {"color": color, "linestyle": line, "linewidth": 1.6}
                if (mean := mean_of(values, curve, smooth)) is not None:
                    axes.plot(at, values, color=color, linewidth=0.8, alpha=0.25)
                    axes.plot(at, mean, **style)
                else:
                    has_dots = line == "-" and not curve.metric.startswith("train_")
                    axes.plot(at, values, marker="o" if has_dots else "", markersize=3, **style)
                keep = run.config.get("keep")
                if isinstance(keep, str) and curve.metric == f"{set_of(keep)}_loss":
                    mark_best(axes, at, values, color=color)
        _set_up(axes, quantity, log_y)
    draw_references(panels, _chances(runs, y))
    label = Y_LABELS[y]
    if y == "loss" and any(numeric := [run.config.get("task") in NUMERIC for run in runs]):
        label = "loss (mean squared error)" if all(numeric) else "loss (nats per token, or mean squared error)"
    if y == "loss" and any(run.config.get("loop") for run in runs):
        label = "loss"  # of any kind
    panels[0].set_ylabel(f"{curves[0].name} {label}" if len(curves) == 1 and y != "memory" else label)
    key = [
        Line2D([], [], color=color, linewidth=2, label=as_text(label))
        for color, label in zip(colors, labels(runs), strict=False)
    ]
    if len(curves) > 1:
        key += [
            Line2D([], [], color="#444444", linewidth=1.6, linestyle=line, label=curve.name)
            for curve, line in zip(curves, _LINES * len(curves), strict=False)
        ]
    columns = min(2, len(x))
    figure.legend(handles=key, loc="outside lower center", frameon=False, ncols=columns, fontsize=9, handlelength=3.5)
    return figure


def _set_up(axes: Axes, x: str, log_y: bool) -> None:
    tidy(axes, X_LABELS[x], "")
    if x == "steps":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif x != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MaxNLocator() if high < 10 * low else LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _chances(runs: Sequence[PlottedRun], y: str) -> dict[str, float]:
    """What a uniform guess among all tokens reaches, for each size of a vocabulary."""
    sizes = sorted({run.vocab_size for run in runs if run.vocab_size is not None})
    if y == "memory":
        return {}
    return {f"uniform guess ({size} tokens)": math.log(size) if y == "loss" else 1 / size for size in sizes}
