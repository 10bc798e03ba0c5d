"""What a picture shows, as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from .draw import Curve, mean_of
from .runs import PlottedRun, names_of

TABLE_START = "run,curve,"
"""The first columns. A file that begins otherwise is none of these tables."""


def table_of(runs: Sequence[PlottedRun], x: Sequence[str], y: str, curves: Sequence[Curve], smooth: int) -> str:
    """The text of a CSV file with a row for each point that is drawn: its run and curve, each x, y, and running_mean.

    A value that a run does not have is empty, and so is running_mean where none is drawn. Arguments: as for `draw`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*TABLE_START[:-1].split(","), *x, y, "running_mean"])
    for run, name in zip(runs, names_of(runs), strict=True):
        for curve in curves:
            lines = run.lines(curve.metric)
            means = mean_of([line[curve.metric] for line in lines], curve, smooth)
            is_drawn = [bool(run.curve(each, curve.metric)[0]) for each in x]
            for number, line in enumerate(lines):
                at = [run.at(line, each) if drawn else None for each, drawn in zip(x, is_drawn, strict=True)]
                mean = None if means is None else float(means[number])
                if any(place is not None for place in at):
                    writer.writerow([name, curve.name, *at, line[curve.metric], mean])
    return text.getvalue().encode(errors="backslashreplace").decode()
