"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from ..errors import (
    CheckpointError,
    DivergenceError,
    GridRangeError,
    JournalError,
    ReplicasDifferError,
    ReplicaStoppedError,
    is_out_of_memory,
)
from ..estimators import Estimate
from ..interrupts import InterruptGate
from ..run.best import better, set_of
from ..run.clock import Clock
from ..run.journal import Row, Scores
from ..tasks import Batch
from .begin import Beginning
from .contention import CoreMonitor, seconds_waited
from .divergence import DivergenceMonitor
from .evaluate import as_scores, evaluate, regroup
from .memory import peak_memory
from .ranks import Ranks
from .record import Record
from .repair import repair
from .solvers import lr_at

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How a run ended. By default all steps were taken.

    interrupted: Ctrl-C or SIGTERM stopped it, on this rank or another.
    failure: Why no further step can be taken.
    stopped_early: The patience of the run was at its end.
    validating: Share of this process's time that went into validations, from 0 to 1.
    """

    interrupted: bool = False
    failure: str | None = None
    stopped_early: bool = False
    validating: float = 0.0


def train(beginning: Beginning, record: Record, gate: InterruptGate, ranks: Ranks) -> Outcome:
    """Takes the remaining steps of a run, and validates before the first step, after the last one and at intervals.

    Each step writes a row to the journal before it changes the parameters, and a line to the metrics. train_loss is the
    mean of the probes' losses, measured around the parameters before the update. Losses and accuracies of other sets
    are measured after it. However the run ends, the parameters are those after its last complete step, and the last row
    of the journal is the row of that step.

    Raises ReplicaError if another rank failed or is gone.
    """
    loop = _Loop(beginning, record, gate, ranks)
    return replace(_end_of(loop), validating=loop.validating())


def _end_of(loop: _Loop) -> Outcome:
    try:
        loop.go()
    except (KeyboardInterrupt, ReplicaStoppedError):
        return Outcome(interrupted=True)
    except (DivergenceError, GridRangeError, JournalError, CheckpointError) as error:
        return Outcome(failure=str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "give --micro-batch-size, or lower --batch-size or the length of a sequence"
        return Outcome(failure=f"memory ran out: {advice}")
    return Outcome(stopped_early=loop.stopped_early)


class _Loop:
    def __init__(self, beginning: Beginning, record: Record, gate: InterruptGate, ranks: Ranks) -> None:
        self._beginning = beginning
        self._run = beginning.run
        self._record = record
        self._gate = gate
        self._ranks = ranks
        self._validation_batches = regroup(self._run.task.validation_batches(), self._run.config)
        self._monitor = DivergenceMonitor(self._run.config.steps, settled=self._run.config.curriculum or 0)
        self._cores = CoreMonitor(torch.get_num_threads())
        self._clock, self._validation_clock = Clock(), Clock()
        self._seconds_before = 0.0
        self._best = beginning.best
        self.stopped_early = False

    def go(self) -> None:
        record, config, start = self._record, self._run.config, self._beginning.step
        self._clock.seconds = self._seconds_before = record.begin(start)
        self._scores_after(start)
        record.begin_metrics(start)
        if self._is_best(start) or self._is_over(start):
            record.checkpoint_missing(start, self._kept())  # the run may have been killed before it was written
        for step in range(start, config.steps):
            if self._is_over(step):
                self.stopped_early = True
                return
            seconds_before, waited_before = self._clock.seconds, seconds_waited()
            row, estimate = self._step(step)
            done = step + 1
            warnings = self._watch_cores(done, seconds_before, waited_before)
            saves = done % config.checkpoint_every == 0 or done == config.steps
            if saves or (config.keep and self._validates(done)):
                self._compare(done)
            scores: Scores = {}
            try:
                scores = self._scores_after(done)
            finally:  # the step is complete even if its validation is interrupted
                record.metrics(row, scores)
            if saves or self._is_best(done) or self._is_over(done):
                record.checkpoint(done, self._kept())
            warnings += self._monitor.observe(done, row.loss, estimate.losses, row.lr, row.eps)
            for warning in warnings:
                record.warn(warning)
            if config.stop_on_divergence and self._monitor.diverged:
                raise DivergenceError(
                    f"stopped after step {done}: the loss is {row.loss:.3g} and has long been far above its best; "
                    "lower lr, or give --no-stop-on-divergence"
                )

    def validating(self) -> float:
        """The share of this process's time that went into validations, so far."""
        validating = self._validation_clock.seconds
        training = self._clock.seconds - self._seconds_before
        return validating / (validating + training) if validating + training > 0 else 0.0

    def _watch_cores(self, done: int, seconds_before: float, waited_before: float | None) -> list[str]:
        waited = seconds_waited()
        if waited is None or waited_before is None or self._run.device.type != "cpu":
            return []
        return self._cores.observe(done, self._clock.seconds - seconds_before, waited - waited_before)

    def _compare(self, done: int) -> None:
        """Compares the parameters of all ranks, so that none are saved that differ."""
        if (replicas := self._ranks.replicas) is not None:
            self._with_repair(lambda: replicas.check_same(done, self._run.solver.digest))

    def _with_repair(self, act: Callable[[], T]) -> T:
        """Calls `act`, and once more if the ranks were found to differ and could be repaired."""
        try:
            return act()
        except ReplicasDifferError as error:
            repair(error, self._beginning, self._ranks, self._record)
            return act()

    def _step(self, step: int) -> tuple[Row, Estimate]:
        run, lr = self._run, lr_at(self._run.config, step)
        with self._clock.running():
            batch = run.batch(step)
            estimate = self._with_repair(lambda: run.solver.estimate(batch, lr))
            eps = estimate.eps[0] if estimate.eps else 0.0
            seconds = self._clock.elapsed()
            row = Row(step, lr, eps, run.config.seed, estimate.coeffs.numpy(), estimate.loss, seconds)
            self._record.append(row)  # before the parameters change, so that the step can be replayed
            try:
                run.solver.apply(estimate)
            except Exception:
                self._record.take_back(step)
                raise
        self._record.show_step(row)
        return row, estimate

    def _validates(self, done: int) -> bool:
        config = self._run.config
        return done % config.validate_every == 0 or done in (self._beginning.first_step, config.steps)

    def _is_best(self, done: int) -> bool:
        return self._kept() == done

    def _is_over(self, done: int) -> bool:
        config = self._run.config
        is_patient = config.patience is None or self._best is None or self._best.since < config.patience
        return done == config.steps or not is_patient

    def _kept(self) -> int | None:
        return None if self._run.config.keep is None or self._best is None else self._best.step

    def _scores_after(self, done: int) -> Scores:
        """Validates if it is time to, and tests after the last step, unless that was done before the run was killed."""
        config = self._run.config
        known = self._beginning.scored if done == self._beginning.step else frozenset[str]()
        scores: Scores = {}
        if self._validates(done) and not known.issuperset(self._validation_batches):
            scores = self._measure(done, self._validation_batches, shown=True)
            if (found := scores.get(set_of(config.keep))) is not None:
                self._best = better(self._best, done, found[0])
        test_sets = self._run.task.test_batches() if self._is_over(done) else {}
        if not known.issuperset(test_sets):
            scores = {**scores, **self._measure(done, regroup(test_sets, config), shown=False)}
        if scores:
            measured = {**peak_memory(self._run.device), "validation_share": round(self.validating(), 4)}
            others = {name: (value, math.nan) for name, value in measured.items()}
            self._record.scores(done, others, shown=False)
            scores = {**scores, **others}
        return scores

    def _measure(self, done: int, batches: Mapping[str, Sequence[Batch]], *, shown: bool) -> Scores:
        with self._validation_clock.running():
            run, replicas = self._run, self._ranks.replicas
            found = evaluate(run.model, batches, run.device, self._gate, replicas, has_answers=run.task.has_answers)
        scores = as_scores(found, has_accuracy=run.task.has_accuracy)
        self._record.scores(done, scores, shown=shown)
        return scores
