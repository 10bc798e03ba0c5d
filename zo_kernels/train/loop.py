"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import CheckpointError, DivergenceError, GridRangeError, JournalError
from ..journal import Row, Scores
from ..models import LanguageModel
from ..tasks import BatchSets, Score, score
from .build import Run
from .config import lr_at
from .interrupt_gate import InterruptGate
from .loggers import Logger
from .reporter import Reporter
from .run_folder import Metrics, RunFolder, journaled_metrics, metrics_of
from .solvers import Taken
from .watch import Watch


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with all its steps done, unless one of these says otherwise.

    interrupted: by Ctrl-C.
    failure: why there is no next step.
    """

    interrupted: bool = False
    failure: str | None = None


def train(
    run: Run, folder: RunFolder, start: int, reporter: Reporter, gate: InterruptGate, loggers: Sequence[Logger]
) -> Outcome:
    """Takes the steps of a run from `start` on; validates before the first, after the last, and every so often between.

    Each step has a row in the folder's journal, which is written before the parameters change, and a line in its
    metrics. Its train_loss is the mean over the probes' losses, taken around the parameters as they were before its
    update; losses and accuracies of other sets are taken after it. However the run ends, the parameters are those
    after its last whole step, and the journal's last row is that step's.
    """
    try:
        _Loop(run, folder, reporter, gate, loggers).go(start)
    except KeyboardInterrupt:
        return Outcome(interrupted=True)
    except (DivergenceError, GridRangeError, JournalError, CheckpointError) as error:
        return Outcome(failure=str(error))
    except OSError as error:
        return Outcome(failure=f"can't write to {folder.path}: {error.strerror}")
    return Outcome()


class _Loop:
    def __init__(
        self, run: Run, folder: RunFolder, reporter: Reporter, gate: InterruptGate, loggers: Sequence[Logger]
    ) -> None:
        self._run = run
        self._folder = folder
        self._reporter = reporter
        self._gate = gate
        self._loggers = loggers
        self._validation_batches = run.task.validation_batches()
        self._watch = Watch(run.config.steps, settled=run.config.curriculum or 0)
        self._clock = Clock()

    def go(self, start: int) -> None:
        run, folder, config = self._run, self._folder, self._run.config
        journal = folder.journal
        journal.truncate(start)
        if start > journal.first_step:
            (last,) = journal.rows(start - 1, start)
            self._clock.seconds = last.seconds
        if not journal.scores(start):
            self._scores_after(start)
        lines = list(journaled_metrics(journal, run.solver.forwards))
        folder.begin_metrics(lines)
        if start == journal.first_step:
            self._log(lines[-1])
            self._save_checkpoint(start)
        for step in range(start, config.steps):
            row, taken = self._step(step)
            done = step + 1
            self._reporter.step(done, row.loss)
            scores: Scores = {}
            try:
                scores = self._scores_after(done)
            finally:  # the step was taken, even if its validation is interrupted
                metrics = metrics_of(row, scores, run.solver.forwards)
                folder.add_metrics(metrics)
                self._log(metrics)
            if done % config.checkpoint_every == 0 or done == config.steps:
                self._save_checkpoint(done)
            for warning in self._watch.see(done, row.loss, taken.losses, row.lr, taken.eps):
                self._reporter.warn(warning)
            if config.stop_on_divergence and self._watch.diverged:
                raise DivergenceError(
                    f"stopped after step {done}, for the loss is {row.loss:.3g} and has long been far above its best: "
                    "lower lr, or give --no-stop-on-divergence"
                )

    def _step(self, step: int) -> tuple[Row, Taken]:
        run, rows = self._run, []
        lr = lr_at(run.config, step)

        def record(taken: Taken) -> None:
            row = Row(step, lr, taken.eps, run.config.seed, taken.coeffs.numpy(), taken.loss, self._clock.elapsed())
            self._folder.record(row)
            rows.append(row)

        with self._clock.running():
            batch = run.task.batch(step).to(run.device)
            try:
                taken = run.solver.step(batch, lr, record)
            except GridRangeError:  # found after the row was written: the step was not taken
                self._folder.journal.truncate(step)
                raise
        return rows[0], taken

    def _scores_after(self, done: int) -> Scores:
        """Validates if it is time to, and at the end tests."""
        config = self._run.config
        scores: Scores = {}
        if done % config.validate_every == 0 or done in (self._folder.journal.first_step, config.steps):
            scores = self._validate(done, self._validation_batches)
        if done == config.steps and (test_batches := self._run.task.test_batches()):
            scores = {**scores, **self._measure(done, test_batches)}
        return scores

    def _validate(self, step: int, batches: BatchSets) -> Scores:
        with self._gate.open():
            scores = evaluate(self._run.model, batches, self._run.device)
        self._reporter.validation(step, scores)
        return self._keep(step, scores)

    def _measure(self, step: int, batches: BatchSets) -> Scores:
        with self._gate.open():
            return self._keep(step, evaluate(self._run.model, batches, self._run.device))

    def _keep(self, step: int, scores: dict[str, Score]) -> Scores:
        kept = {name: (score.loss, score.accuracy) for name, score in scores.items()}
        self._folder.journal.add_scores(step, kept)
        return kept

    def _save_checkpoint(self, step: int) -> None:
        run = self._run
        self._folder.save_checkpoint(step, run.model.state_dict(), run.solver.state(), keep=run.config.keep_checkpoints)

    def _log(self, metrics: Metrics) -> None:
        values = dict(metrics)
        step = values.pop("step")
        assert step is not None
        for logger in self._loggers:
            logger.metrics(int(step), values)


class Clock:
    """Seconds of training, validations and files not counted."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """While entered, the clock runs."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = self.elapsed()
            self._started = None

    def elapsed(self) -> float:
        """Seconds up to now."""
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)


@torch.no_grad()
def evaluate(model: LanguageModel, batch_sets: BatchSets, device: torch.device) -> dict[str, Score]:
    """The model's score on each set of batches."""
    scores = {}
    for name, batches in batch_sets.items():
        total = Score(nats=0.0, correct=0, count=0)
        for batch in batches:
            tokens, targets = batch.to(device)
            logits, _ = model(tokens)
            total += score(logits, targets)
        scores[name] = total
    return scores
