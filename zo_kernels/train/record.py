"""Records a run while it trains: journal rows, scores, metrics, checkpoints, and lines on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CheckpointError
from ..run.folder import RunFolder, checkpoint_steps
from ..run.journal import Row, Scores
from ..run.metrics import Metrics
from ..run.record import StepRecord
from .build import Run
from .loggers import Logger
from .reporter import Reporter


class Record:
    """The record of a rank that writes nothing: every method does nothing."""

    def begin(self, start: int) -> float:
        """Removes the rows from step `start` on, and notes if rows before it are missing.

        Returns the seconds of training before it, as far as the rows say.
        """
        return 0.0

    def begin_metrics(self, start: int) -> None:
        """Rewrites the metrics up to step `start` from the journal, once the initial parameters are scored."""

    def append(self, row: Row) -> None:
        """Writes the row of a step to the journal, before the step is taken. Raises JournalError."""

    def take_back(self, step: int) -> None:
        """Removes the row of a step that could not be taken."""

    def show_step(self, row: Row) -> None:
        """Shows the progress after a step."""

    def scores(self, done: int, scores: Scores, *, shown: bool) -> None:
        """Writes what was measured after `done` steps."""

    def metrics(self, row: Row, scores: Scores) -> None:
        """Writes the metrics of a step, and what was measured after it."""

    def checkpoint(self, done: int, best: int | None = None) -> None:
        """Saves the parameters and the solver's state after `done` steps. Raises CheckpointError.

        best: a step whose checkpoint stays, however old it is.
        """

    def checkpoint_missing(self, done: int, best: int | None = None) -> None:
        """Saves a checkpoint as `checkpoint` does, unless there is one of this step."""

    def warn(self, warning: str) -> None:
        """Prints a warning."""


class FolderRecord(Record):
    """Records to the run folder, the loggers and the console."""

    def __init__(self, run: Run, folder: RunFolder, reporter: Reporter, loggers: Sequence[Logger]) -> None:
        self._run = run
        self._steps = StepRecord(folder, run.per_step, run.config.keep_checkpoints)
        self._reporter = reporter
        self._loggers = loggers

    def begin(self, start: int) -> float:
        return self._steps.begin(start)

    def begin_metrics(self, start: int) -> None:
        line = self._steps.begin_metrics()
        if start == self._steps.folder.journal.first_step:
            assert line is not None  # the initial parameters are scored
            self._log(line)
            self.checkpoint(start)

    def append(self, row: Row) -> None:
        self._steps.append(row)

    def take_back(self, step: int) -> None:
        self._steps.take_back(step)

    def show_step(self, row: Row) -> None:
        self._reporter.step(row.step + 1, row.loss)

    def scores(self, done: int, scores: Scores, *, shown: bool) -> None:
        if shown:
            self._reporter.validation(done, scores)
        self._steps.scores(done, scores)

    def metrics(self, row: Row, scores: Scores) -> None:
        self._log(self._steps.metrics(row, scores))

    def checkpoint(self, done: int, best: int | None = None) -> None:
        self._steps.checkpoint(done, self._run.model.state_dict(), self._run.solver.state(), best)

    def checkpoint_missing(self, done: int, best: int | None = None) -> None:
        if done not in checkpoint_steps(self._steps.folder.path):
            self.checkpoint(done, best)

    def warn(self, warning: str) -> None:
        self._reporter.warn(warning)

    def _log(self, metrics: Metrics) -> None:
        values = dict(metrics)
        step = values.pop("step")
        assert step is not None
        for logger in self._loggers:
            try:
                logger.metrics(int(step), values)
            except OSError as error:
                where = error.filename or self._steps.folder.path
                raise CheckpointError(f"can't write to {where}: {error.strerror}") from error
