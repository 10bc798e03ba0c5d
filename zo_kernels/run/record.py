"""Records the steps of a run in its folder: journal rows, scores, metrics and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import load_checkpoint
from .folder import RunFolder, checkpoint_path
from .journal import Row, Scores
from .metrics import Metrics, PerStep, metrics_from_journal, metrics_of


class StepRecord:
    """What a run writes to its folder from step to step. keep: how many of the newest checkpoints stay."""

    def __init__(self, folder: RunFolder, per_step: PerStep, keep: int) -> None:
        self.folder = folder
        self._per_step = per_step
        self._keep = keep
        self._seconds = 0.0

    def begin(self, start: int) -> float:
        """Removes the rows from step `start` on, and notes if rows before it are missing.

        Returns the seconds of training before it, as far as the rows say.
        """
        journal = self.folder.journal
        journal.truncate(start)
        if start > journal.next_step:  # a checkpoint of this step is there, but not all rows before it
            checkpoint = load_checkpoint(checkpoint_path(self.folder.path, start))
            journal.leave_gap(start, checkpoint.journal)
        last = journal.last_row()
        self._seconds = 0.0 if last is None else last.seconds
        return self._seconds

    def begin_metrics(self) -> Metrics | None:
        """Rewrites the metrics from the journal, and returns the last line. Raises CheckpointError."""
        lines = list(metrics_from_journal(self.folder.journal, self._per_step))
        with self._file_errors():
            self.folder.begin_metrics(lines)
        return lines[-1] if lines else None

    def append(self, row: Row) -> None:
        """Writes the row of a step to the journal, before the step is taken. Raises JournalError."""
        self.folder.journal.append(row)

    def take_back(self, step: int) -> None:
        """Removes the row of a step that could not be taken."""
        self.folder.journal.truncate(step)

    def scores(self, done: int, scores: Scores) -> None:
        """Writes what was measured after `done` steps."""
        self.folder.journal.add_scores(done, scores)

    def metrics(self, row: Row, scores: Scores) -> Metrics:
        """Writes the metrics of a step, and what was measured after it. Returns the line. Raises CheckpointError."""
        metrics = metrics_of(row, scores, self._per_step, self._seconds)
        self._seconds = row.seconds
        with self._file_errors():
            self.folder.add_metrics(metrics)
        return metrics

    def checkpoint(self, done: int, model: Mapping[str, Tensor], solver: Any, best: int | None = None) -> None:
        """Saves the parameters and the solver's state after `done` steps. Raises CheckpointError.

        best: a step whose checkpoint stays, however old it is.
        """
        with self._file_errors():
            self.folder.save_checkpoint(done, model, solver, keep=self._keep, best=best)

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.folder.path
            raise CheckpointError(f"can't write to {where}: {error.strerror}") from error
