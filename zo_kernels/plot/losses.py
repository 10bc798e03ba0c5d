"""Plots the losses of one run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..run.best import best_of

DPI = 150
_TRAIN, _REFERENCE = "#9bb8d3", "#8a8a8a"
_REACH, _APART = 0.25, 0.05
"""How far a reference may be from the data, and within which two are one line, as shares of the range of the data."""
_HELD_OUT = ("#d1495b", "#edae49", "#3a7d44")


def plot_losses(
    path: Path,
    metrics: Sequence[Mapping[str, float | None]],
    title: str,
    reference_losses: Mapping[str, float],
    best: str | None = None,
    unit: str = "nats per token",
) -> None:
    """Plots training and validation losses against the step.

    path: the PNG file to write.
    metrics: lines with `step` and any of `train_loss` and NAME_loss.
    reference_losses: losses to draw as horizontal lines, by their labels.
    best: name of a set whose lowest loss is marked. unit: of all losses.
    """
    figure = Figure(figsize=(8, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    names = dict.fromkeys(name for line in metrics for name in line if name.endswith("_loss"))
    held_out = [name for name in names if name not in ("train_loss", "test_loss")]
    if "train_loss" in names:
        axes.plot(*_curve(metrics, "train_loss"), color=_TRAIN, linewidth=1, label="train (mean over the probes)")
    for number, name in enumerate(held_out):
        color = _HELD_OUT[number % len(_HELD_OUT)]
        axes.plot(*_curve(metrics, name), color=color, linewidth=1.8, marker="o", markersize=3, label=name[:-5])
    if best is not None:
        mark_best(axes, *_curve(metrics, f"{best}_loss"), color="black", label=f"lowest {best} loss")
    if names:
        draw_references([axes], reference_losses)
    axes.set_title(as_text(title), fontsize=11)
    tidy(axes, "step", f"loss ({unit})" if unit else "loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if names:  # a run interrupted before its first validation has no curve
        axes.legend(frameon=False)
    save_figure(figure, path)


def mark_best(axes: Axes, at: Sequence[float], values: Sequence[float], *, color: Any, label: str = "") -> None:
    """Marks the first of the lowest values of a curve with a star, if there are any."""
    if (best := best_of(enumerate(values))) is not None:
        axes.plot(at[best.step], best.loss, color=color, marker="*", markersize=13, linestyle="", label=label)


def draw_references(panels: Sequence[Axes], references: Mapping[str, float]) -> None:
    """Draws values as horizontal lines with their names. The y range is that of the data, and a little more.

    A line that is further from the data than a quarter of their range is left out, since it would flatten the curves.
    Lines that can't be told apart have their names together. panels: share one y axis.
    """
    axes = panels[0]
    transform = axes.yaxis.get_transform()
    low, high = (float(transform.transform(end)) for end in axes.get_ylim())
    reach, together = _REACH * (high - low), list[tuple[float, list[str]]]()
    for name, value in references.items():
        place = float(transform.transform(value))
        if not low - reach <= place <= high + reach:
            continue
        near = [names for at, names in together if abs(transform.transform(at) - place) < _APART * (high - low)]
        near[0].append(name) if near else together.append((value, [name]))
    ends = [low, high]
    for value, names in together:
        place = float(transform.transform(value))
        ends += [place - _APART * (high - low), place + _APART * (high - low)]
        for panel in panels:
            panel.axhline(value, color=_REFERENCE, linewidth=1, linestyle=(0, (6, 4)), zorder=1)
            panel.annotate(
                f"{', '.join(names)} {value:.2f}",
                xy=(1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                color=_REFERENCE,
                fontsize=9,
            )
    axes.set_ylim(*(float(transform.inverted().transform(end)) for end in (min(ends), max(ends))))


def as_text(name: str) -> str:
    """A name for matplotlib to show as it is, which may be that of any folder.

    matplotlib reads what is between dollar signs as mathematics, and can't draw undecodable bytes and control
    characters.
    """
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return "".join(shown).replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Saves a figure as a PNG. Characters that the font lacks are boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(path, format="png")


def tidy(axes: Axes, x_label: str, y_label: str) -> None:
    """Sets the labels of a panel, and the style that all panels share. The horizontal axis starts at 0."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(metrics: Sequence[Mapping[str, float | None]], name: str) -> tuple[list[float], list[float]]:
    """Returns the steps at which a loss was measured, and its values."""
    points = [(line["step"], loss) for line in metrics if (loss := line.get(name)) is not None]
    return [step for step, _ in points if step is not None], [loss for _, loss in points]
