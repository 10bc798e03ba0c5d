"""Figure 2: validation losses on the Penn Treebank during training: the trials of Table 2."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from . import table2
from .options import Options
from .pages import table
from .published import BEST_LOSSES
from .trials import Trials

_SHARES = (0.1, 0.25, 0.5, 1.0)


def measure(trials: Trials, options: Options) -> None:
    """Runs what Table 2 lacks of this task, and copies the best trial of each curve."""
    source = Trials(trials.path.with_name("table2.json"), "python -m bench.paper table2", trials.only)
    table2.measure(source, options, ("ptb",))
    best = (table2.best_of(source, "ptb", size, way) for size in table2.SIZES for way in table2.WAYS)
    trials.done = [trial for trial in best if trial is not None]


def draw(trials: Trials, path: Path) -> bool:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axis, size in zip(figure.subplots(1, len(table2.SIZES)), table2.SIZES, strict=True):
        table2.draw_curves(axis, trials, "ptb", size)
        axis.set(title=size, xlabel="step")
    figure.axes[0].set_ylabel("validation loss, nats per character")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return True


def tables(trials: Trials) -> str:
    rows = []
    for size in table2.SIZES:
        if not trials.select(task="ptb", preset=f"paper-lstm-{size}"):
            rows.append([size, "all", *["not yet measured"] * (len(_SHARES) + 1), f"{BEST_LOSSES['ptb'][size]:.2f}"])
            continue
        for way in table2.WAYS:
            trial = table2.best_of(trials, "ptb", size, way)
            if trial is None:
                rows.append([size, way, *["not yet measured"] * (len(_SHARES) + 1), f"{BEST_LOSSES['ptb'][size]:.2f}"])
                continue
            found = trial["found"]
            at = [max(p for p in found["curve"] if p[0] <= share * found["steps"])[1] for share in _SHARES]
            losses = [f"{loss:.3f}" for loss in at]
            rows.append([size, way, *losses, f"{found.get('test_loss', 0):.3f}", f"{BEST_LOSSES['ptb'][size]:.2f}"])
    head = ["parameters", "way", *(f"at {share:.0%} of the steps" for share in _SHARES), "test", "the paper's best"]
    return table(head, rows)
