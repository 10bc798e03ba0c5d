"""Draws the curves of bench/activity.py: validation loss by the time of training, for each way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLORS = {
    "BPTT, AdamW": "#1f77b4",
    "local gradient, no probes": "#2ca02c",
    "activity, 1 probe, local gradient": "#98df8a",
    "activity, 1 probe": "#ff7f0e",
    "activity, 1 probe, credit length 2": "#ffbb78",
    "activity, 4 probes": "#8c564b",
    "CD-RGE, 96 probes": "#d62728",
}
WANTED = 1.75
"""Validation loss in nats: the time in which back-propagation reaches it is what others are given."""


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of content["curves"]. All of them were measured on the same number of threads."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        for curve in content["curves"]:
            if curve["name"] == name:
                _, _, seconds, losses = zip(*curve["points"], strict=True)
                axes.plot(seconds, losses, color=color, linewidth=1.8, label=name)
    axes.axhline(WANTED, color="#444444", linewidth=1, linestyle=(0, (6, 4)))
    axes.annotate(
        f"{WANTED}", (1, WANTED), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points"
    )
    axes.set_ylim(1.65, 3.0)
    axes.set_xlim(left=0)
    axes.set_xlabel(_seconds(content["curves"]))
    axes.set_ylabel("validation loss, nats per character")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    machine = content["machine"]
    figure.suptitle(
        f"Penn Treebank, LSTM of 100k parameters ({machine['processor'].split(',')[0]}, {machine['isa']})", fontsize=11
    )
    figure.savefig(path, dpi=130)


def _seconds(curves: list[Mapping[str, Any]]) -> str:
    threads = curves[0].get("threads", 1)
    return "seconds of CPU time, one thread" if threads == 1 else f"seconds, {threads} threads"
