"""Plots several runs in one picture, and writes what it shows as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UsageError
from ..run.files import open_regular, write_atomically
from ..run.metrics import EXACT
from .config import DEFAULT_X
from .draw import X_LABELS, Y_LABELS, curves_of, draw
from .losses import save_figure
from .runs import PlottedRun, read_run
from .table import TABLE_START, table_of

_PNG = b"\x89PNG\r\n\x1a\n"


def plot_runs(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    csv: str | Path | None = None,
    x: Sequence[str] = DEFAULT_X,
    y: str = "loss",
    sets: Sequence[str] = ("validation",),
    smooth: int = 20,
    log_y: bool = False,
) -> None:
    """Plots runs in a PNG file, with a panel for each x. Runs differ in colour, data sets in line style.

    paths: folders of runs.
    out: the file to write. An existing PNG is replaced.
    csv: file to write the drawn points to, as a table. A table of an earlier call is replaced.
    x: any of "steps", "forwards" (forward passes so far), "seconds" (of training so far) and "tokens" (of the batches
        so far).
    y: "loss", "accuracy", also of whole answers where a run has it, or "memory" (the most so far).
    sets: data sets of losses and accuracies: "train", "validation" and others that the runs were measured on.
    smooth: steps of the running mean of training losses, behind which the losses themselves are drawn faintly. Runs of
        fewer than 10 times as many steps are not smoothed.
    log_y: logarithmic vertical axis.

    Losses and accuracies of a uniform guess among all tokens are drawn too, if they are near those of the runs.

    Raises UsageError for other arguments, for a folder that is not that of a run, for a run without any of the curves,
    and if a file can't be written, has another ending than .png or .csv, or exists and is something else.
    """
    out = Path(out)
    if not paths or not x or not sets:
        raise UsageError("there is nothing to plot: name at least one run, one x and one set")
    for name in x:
        if name not in X_LABELS:
            raise UsageError(f"unknown x {name!r}: choose among {', '.join(X_LABELS)}")
    if y not in Y_LABELS:
        raise UsageError(f"unknown y {y!r}: choose one of {', '.join(Y_LABELS)}")
    if smooth < 1:
        raise UsageError(f"smooth must be at least 1, not {smooth}")
    runs = [read_run(Path(path)) for path in paths]
    curves = curves_of(y, sets)
    for run in runs:
        _check_run(run, x, [curve.metric for curve in curves])
    curves = [each for each in curves if any(run.curve(name, each.metric)[0] for run in runs for name in x)]
    _check_target(out, "picture", "--out", ".png", _PNG)
    if csv is not None:
        csv = Path(csv)
        _check_target(csv, "table", "--csv", ".csv", TABLE_START.encode())
    figure = draw(runs, x, y, curves, smooth, log_y)
    _write(out, lambda unfinished: save_figure(figure, unfinished))
    if csv is not None:
        table = table_of(runs, x, y, curves, smooth)
        _write(csv, lambda unfinished: unfinished.write_text(table, encoding="utf-8"))


def _check_run(run: PlottedRun, x: Sequence[str], metrics: Sequence[str]) -> None:
    if any(run.curve(name, metric)[0] for name in x for metric in metrics):
        return
    if any(run.lines(metric) for metric in metrics):
        raise UsageError(f"{run.path} does not say its {' or '.join(x)}: give another --x, or --resume it to add them")
    metrics = [metric for metric in metrics if not metric.endswith(f"{EXACT}_accuracy")]
    there = ", ".join(run.curves()) or "nothing yet"
    raise UsageError(f"there is nothing to plot of {run.path}: it has no {' or '.join(metrics)}, but {there}")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from error


def _check_target(out: Path, what: str, flag: str, suffix: str, start: bytes) -> None:
    kind = suffix[1:].upper()
    if out.suffix.lower() != suffix:
        raise UsageError(f"the {what} is a {kind}: give {flag} a name that ends in {suffix}, not {out}")
    if not out.parent.is_dir():
        raise UsageError(f"can't write {out}: there is no folder {out.parent}")
    if out.exists():
        try:
            with open(open_regular(out, follow=True), "rb") as file:
                is_old = file.read(len(start)) == start
        except OSError as error:
            raise UsageError(f"can't write {out}: {error.strerror}") from error
        if not is_old:
            raise UsageError(f"{out} exists and is not a {kind} of a plot: give {flag} another name")
