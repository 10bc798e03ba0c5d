"""Records a run while it trains: journal rows, scores, metrics, checkpoints, and lines on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import CheckpointError
from ..run.checkpoint import load_checkpoint
from ..run.folder import RunFolder, checkpoint_path, checkpoint_steps
from ..run.journal import Row, Scores
from ..run.metrics import Metrics, metrics_from_journal, metrics_of
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
        self._folder = folder
        self._reporter = reporter
        self._loggers = loggers
        self._seconds = 0.0

    def begin(self, start: int) -> float:
        journal = self._folder.journal
        journal.truncate(start)
        if start > journal.next_step:  # a checkpoint of this step is there, but not all rows before it
            checkpoint = load_checkpoint(checkpoint_path(self._folder.path, start))
            journal.leave_gap(start, checkpoint.journal)
        last = journal.last_row()
        self._seconds = 0.0 if last is None else last.seconds
        return self._seconds

    def begin_metrics(self, start: int) -> None:
        lines = list(metrics_from_journal(self._folder.journal, self._run.per_step))
        with self._file_errors():
            self._folder.begin_metrics(lines)
            if start == self._folder.journal.first_step:
                self._log(lines[-1])
                self.checkpoint(start)

    def append(self, row: Row) -> None:
        self._folder.journal.append(row)

    def take_back(self, step: int) -> None:
        self._folder.journal.truncate(step)

    def show_step(self, row: Row) -> None:
        self._reporter.step(row.step + 1, row.loss)

    def scores(self, done: int, scores: Scores, *, shown: bool) -> None:
        if shown:
            self._reporter.validation(done, scores)
        self._folder.journal.add_scores(done, scores)

    def metrics(self, row: Row, scores: Scores) -> None:
        metrics = metrics_of(row, scores, self._run.per_step, self._seconds)
        self._seconds = row.seconds
        with self._file_errors():
            self._folder.add_metrics(metrics)
            self._log(metrics)

    def checkpoint(self, done: int, best: int | None = None) -> None:
        model, solver, keep = self._run.model, self._run.solver, self._run.config.keep_checkpoints
        with self._file_errors():
            self._folder.save_checkpoint(done, model.state_dict(), solver.state(), keep=keep, best=best)

    def checkpoint_missing(self, done: int, best: int | None = None) -> None:
        if done not in checkpoint_steps(self._folder.path):
            self.checkpoint(done, best)

    def warn(self, warning: str) -> None:
        self._reporter.warn(warning)

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._folder.path
            raise CheckpointError(f"can't write to {where}: {error.strerror}") from error

    def _log(self, metrics: Metrics) -> None:
        values = dict(metrics)
        step = values.pop("step")
        assert step is not None
        for logger in self._loggers:
            logger.metrics(int(step), values)
