"""What a run prints while it goes: a live bar in a terminal, and a line for each validation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ..tasks import Score


class Reporter:
    """Progress of one run; a context manager around its steps.

    console: where to print; the bar appears if it is a terminal.
    steps: of the whole run.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._loss = math.nan
        self._rate = 0.0
        self._started = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("training", total=steps, status="first step")

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: int, loss: float, rate: float) -> None:
        """Shows that `step` steps are done, the last one's mean loss in nats, and the rate in probes per second."""
        self._loss, self._rate = loss, rate
        self._progress.update(self._bar, completed=step, status=f"loss {loss:.3f}  {rate:,.0f} probes/s")

    def validation(self, step: int, scores: Mapping[str, Score]) -> None:
        """Prints a line with the last training loss and the scores after `step` steps."""
        parts = [f"{step:>{len(str(self._steps))}}/{self._steps}"]
        if step > 0:
            parts.append(f"train {self._loss:.3f}")
        parts += [f"{name} {score.loss:.3f} ({score.accuracy:.0%} right)" for name, score in scores.items()]
        if step > 0 and not self._console.is_terminal:  # what the bar shows in a terminal
            seconds_left = (time.monotonic() - self._started) / step * (self._steps - step)
            parts.append(f"{self._rate:,.0f} probes/s, ETA {seconds_left:.0f} s")
        self._console.print("  ".join(parts))
