"""Plots several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from ..errors import UsageError
from ..run.files import open_regular, write_atomically
from .config import X
from .losses import DPI, as_text, save_figure, tidy
from .runs import PlottedRun, labels, read_run

_COLORS = ("#3b6fb6", "#d1495b", "#edae49", "#3a7d44", "#8e6cae", "#56b4c4", "#6b6b6b", "#a0522d")
_Line = Literal["-"] | tuple[int, tuple[float, ...]]
_LINES: tuple[_Line, ...] = ("-", (0, (5, 2.5)), (0, (1.2, 1.8)), (0, (6, 2, 1.2, 2)))
"""Solid, dashed, dotted, and dashes with dots: lengths in line widths."""
_LEAST_WINDOWS = 10
"""A running mean moves a crossing by up to half its window, so that it is for runs of many windows only."""
_X_LABELS = {"step": "step", "forwards": "forward passes", "seconds": "training time (s)"}
_Y_LABELS = {"loss": "loss (nats per token)", "accuracy": "accuracy"}
_PNG = b"\x89PNG\r\n\x1a\n"


def plot_runs(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    x: Sequence[str] = get_args(X),
    y: str = "loss",
    sets: Sequence[str] = ("validation",),
    smooth: int = 20,
    log_y: bool = False,
) -> None:
    """Plots runs in a PNG file, with a panel for each x. Runs differ in colour, data sets in line style.

    paths: folders of runs.
    out: the file to write. An existing PNG is replaced.
    x: any of "step", "forwards" (forward passes so far) and "seconds" (of training so far).
    y: "loss" or "accuracy".
    sets: data sets: "train", "validation" and others that the runs were measured on.
    smooth: steps of the running mean of training losses, behind which the losses themselves are drawn faintly. Runs of
        fewer than 10 times as many steps are not smoothed.
    log_y: logarithmic vertical axis.

    Raises UsageError for other arguments, for a folder that is not that of a run, for a run without any of the curves,
    and if out can't be written, does not end in .png, or exists and is not a PNG.
    """
    out = Path(out)
    if not paths or not x or not sets:
        raise UsageError("there is nothing to plot: name at least one run, one x and one set")
    for name in x:
        if name not in _X_LABELS:
            raise UsageError(f"unknown x {name!r}: choose among {', '.join(_X_LABELS)}")
    if y not in _Y_LABELS:
        raise UsageError(f"unknown y {y!r}: choose one of {', '.join(_Y_LABELS)}")
    if smooth < 1:
        raise UsageError(f"smooth must be at least 1, not {smooth}")
    runs = [read_run(Path(path)) for path in paths]
    metrics = [f"{name}_{y}" for name in sets]
    for run in runs:
        if not any(run.curve(name, metric)[0] for name in x for metric in metrics):
            there = ", ".join(run.losses_and_accuracies()) or "nothing yet"
            raise UsageError(f"there is nothing to plot of {run.path}: it has no {' or '.join(metrics)}, but {there}")
    _check_target(out)
    figure = _draw(runs, x, y, sets, smooth, log_y)
    try:
        write_atomically(out, lambda unfinished: save_figure(figure, unfinished))
    except OSError as error:
        raise UsageError(f"can't write {out}: {error.strerror}") from error


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Averages the `window` values around each. Near the ends the window shrinks, to the same length on both sides."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(at, len(values) - 1 - at))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def _draw(
    runs: Sequence[PlottedRun], x: Sequence[str], y: str, sets: Sequence[str], smooth: int, log_y: bool
) -> Figure:
    figure = Figure(figsize=(1.5 + 4.5 * len(x), 4.4 + 0.22 * len(runs)), dpi=DPI, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(x), sharey=True, squeeze=False)[0]
    colors = _COLORS if len(runs) <= len(_COLORS) else matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(runs)))
    for axes, quantity in zip(panels, x, strict=True):
        for run, color in zip(runs, colors, strict=False):
            for number, name in enumerate(sets):
                at, values = run.curve(quantity, f"{name}_{y}")
                style = {"color": color, "linestyle": _LINES[number % len(_LINES)], "linewidth": 1.6}
                if name == "train" and smooth > 1 and len(values) >= _LEAST_WINDOWS * smooth:
                    axes.plot(at, values, color=color, linewidth=0.8, alpha=0.25)
                    axes.plot(at, running_mean(values, smooth), **style)
                else:
                    axes.plot(at, values, marker="" if name == "train" or number > 0 else "o", markersize=3, **style)
        tidy(axes, _X_LABELS[quantity], "")
        if quantity == "step":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif quantity == "forwards":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if log_y:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(MaxNLocator() if high < 10 * low else LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel(f"{sets[0]} {_Y_LABELS[y]}" if len(sets) == 1 else _Y_LABELS[y])
    key = [
        Line2D([], [], color=color, linewidth=2, label=as_text(label))
        for color, label in zip(colors, labels(runs), strict=False)
    ]
    if len(sets) > 1:
        key += [
            Line2D([], [], color="#444444", linestyle=_LINES[number % len(_LINES)], label=name)
            for number, name in enumerate(sets)
            if any(run.curve(quantity, f"{name}_{y}")[0] for run in runs for quantity in x)
        ]
    columns = min(2, len(x))
    figure.legend(handles=key, loc="outside lower center", frameon=False, ncols=columns, fontsize=9, handlelength=3.5)
    return figure


def _check_target(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise UsageError(f"the picture is a PNG: give --out a name that ends in .png, not {out}")
    if not out.parent.is_dir():
        raise UsageError(f"can't write {out}: there is no folder {out.parent}")
    if out.exists():
        try:
            with open(open_regular(out, follow=True), "rb") as file:
                is_png = file.read(len(_PNG)) == _PNG
        except OSError as error:
            raise UsageError(f"can't write {out}: {error.strerror}") from error
        if not is_png:
            raise UsageError(f"{out} exists and is not a PNG: give --out another name")
