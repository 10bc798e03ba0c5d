"""Prints the progress of a run: a live bar in a terminal, and a line for each validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ..run.journal import Scores
from ..run.metrics import EXACT


class Reporter:
    """Shows the progress of a run. A context manager around its steps.

    console: where to print. The bar appears if this is a terminal.
    steps: number of steps of the whole run. start: number of steps taken before a resume.
    probes: number of probes per step. 0 for a solver without probes, whose rate is shown in steps.
    in_words: what a loss and an accuracy mean.
    """

    def __init__(
        self,
        console: Console,
        steps: int,
        *,
        start: int = 0,
        probes: int = 0,
        in_words: Callable[[float, float], str] = lambda loss, accuracy: f"{accuracy:.0%} right",
    ) -> None:
        self._console = console
        self._in_words = in_words
        self._steps = steps
        self._start = start
        self._per_step, self._unit = (probes, "probes/s") if probes else (1, "steps/s")
        self._loss = math.nan
        self._done = start
        self._started = time.monotonic()
        self._progress = Progress(
            SpinnerColumn("line" if console.options.ascii_only else "dots"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("training", total=steps, completed=start, status="first step")

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: int, loss: float) -> None:
        """Updates the bar after `step` steps. loss: mean training loss of the last one, in nats."""
        self._done, self._loss = step, loss
        self._progress.update(self._bar, completed=step, status=f"loss {loss:.3f}  {self._rate():,.0f} {self._unit}")

    def validation(self, step: int, scores: Scores) -> None:
        """Prints a line with the last training loss and the scores after `step` steps."""
        parts = [f"{step:>{len(str(self._steps))}}/{self._steps}"]
        if not math.isnan(self._loss):
            parts.append(f"train {self._loss:.3f}")
        for name, (loss, accuracy) in scores.items():
            if not (name.endswith(EXACT) and math.isnan(loss)):
                exact = f", {scores[name + EXACT][1]:.0%} exact" if name + EXACT in scores else ""
                parts.append(f"{name} {loss:.3f} ({self._in_words(loss, accuracy)}{exact})")
        if step > self._start and not self._console.is_terminal:  # what the bar shows in a terminal
            seconds_left = (time.monotonic() - self._started) / (step - self._start) * (self._steps - step)
            parts.append(f"{self._rate():,.0f} {self._unit}, ETA {seconds_left:.0f} s")
        self._console.print("  ".join(parts))

    def warn(self, warning: str) -> None:
        """Prints a warning."""
        self._console.print(f"warning: {warning}", style="yellow")

    def _rate(self) -> float:
        return (self._done - self._start) * self._per_step / (time.monotonic() - self._started)
