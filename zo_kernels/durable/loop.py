"""A durable run of a loop: it records each step before it is taken, and takes recorded steps again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..distributed.replicas import Replicas
from ..errors import CheckpointError, JournalError, UsageError
from ..estimators import Estimate
from ..interrupts import deferred_interrupts
from ..optim.groups import hyper_parameters
from ..plot.losses import plot_losses
from ..run.clock import Clock
from ..run.folder import RunFolder
from ..run.journal import Group, Row, Scores
from ..run.metrics import PerStep, metrics_from_journal
from ..run.record import StepRecord
from .state import LoopState, PutBack


class DurableRun:
    """A run of a loop, from `zo_kernels.durable.run`. It is a context manager, in which the loop goes.

    state: A dict of the script's own numbers, strings, tensors, lists and dicts. It is saved with each checkpoint.
    resumed_from: The step of the checkpoint that the run goes on from, or None if it is a new run.
    """

    state: dict[str, Any]
    resumed_from: int | None

    def __init__(
        self,
        path: Path,
        state: LoopState,
        rows: Sequence[Row],
        record: StepRecord | None,
        *,
        per_step: PerStep,
        checkpoint_every: int,
        resumed_from: int | None,
        seconds: float,
        replicas: Replicas | None,
    ) -> None:
        self.path, self.state, self.resumed_from = path, state.own, resumed_from
        self._state, self._optimizer = state, state.optimizer
        self._rows = {row.step: row for row in rows}
        self._end = state.optimizer.steps_taken + len(rows)
        self._record = record
        self._per_step, self._checkpoint_every, self._replicas = per_step, checkpoint_every, replicas
        self._clock, self._running = Clock(), ExitStack()
        self._clock.seconds = seconds
        self._generator = PutBack()
        self._pass: int | None = None
        self._begun = self._saved = False
        self._unwritten: Row | None = None
        self._optimizer.log = self

    @property
    def replaying(self) -> bool:
        """Whether the next step was taken before the run was stopped: no loss is evaluated for it."""
        return self._optimizer.steps_taken < self._end

    def steps(self, total: int) -> Iterator[int]:
        """Yields the numbers of the steps from the next one to `total` - 1. Each pass of the loop takes one step.

        After a restart they begin at the last checkpoint. Up to the last step that was taken, `step` of the optimizer
        takes its coefficients from the journal and evaluates no loss.

        Raises UsageError if a pass takes no step or several, or a step that was taken before would be another now;
        and JournalError or CheckpointError if a file can't be written.
        """
        optimizer = self._optimizer
        if self._pass is not None:
            raise UsageError("run.steps is in use: end its loop before the next one begins")
        self._save_first()
        while (step := optimizer.steps_taken) < total:
            self._pass = step
            if step >= self._end:
                self._running.enter_context(self._clock.running())
            try:
                yield step
            finally:
                self._pass = None
                self._running.close()
            if optimizer.steps_taken != step + 1:
                raise UsageError(
                    f"the pass of step {step} took {optimizer.steps_taken - step} steps of the optimizer of the run: "
                    "each pass must take one"
                )
            if step + 1 >= self._end and ((step + 1) % self._checkpoint_every == 0 or step + 1 == total):
                if self._replicas is not None:
                    self._replicas.check_same(step + 1, optimizer.digest)  # so that no state is saved that differs
                self._save()

    def scores(self, scores: Scores) -> None:
        """Records what was measured after the steps so far: (loss, accuracy) by the name of a data set.

        `zo_kernels.plot` draws them. An accuracy may be NaN. What was recorded before a restart stays. Raises
        JournalError for a name with anything but letters, digits, _ and -.
        """
        done = self._optimizer.steps_taken
        if self._record is None or done < self._end:
            return
        known = self._record.folder.journal.scores(done)
        new = {name: (float(loss), float(accuracy)) for name, (loss, accuracy) in scores.items() if name not in known}
        if new:
            with deferred_interrupts():
                self._record.scores(done, new)

    def find(self, step: int, eps: Sequence[float]) -> tuple[Tensor, float] | None:
        """Called by the optimizer: the coefficients and the loss of a step that was taken before."""
        if step != self._pass:
            raise UsageError(
                "a step was asked for outside of `for step in run.steps(...)`, or a second one in a pass: each pass "
                "must take one"
            )
        row = self._rows.get(step)
        if row is None:
            self._generator.note(step)
            return None
        now = self._row(step, eps, row.coeffs, row.loss)
        for name in ("seed", "lr", "eps", "groups"):
            was, is_now = getattr(row, name), getattr(now, name)
            if was != is_now:
                raise UsageError(
                    f"step {step} of {self.path} was taken with {name} {was}, and would have {is_now} now: let the "
                    "script do the same again, and give what it keeps from step to step to the run"
                )
        if len(row.coeffs) != self._optimizer.probes:
            raise UsageError(f"step {step} of {self.path} had {len(row.coeffs)} probes, not {self._optimizer.probes}")
        return torch.from_numpy(row.coeffs.copy()), row.loss

    @contextmanager
    def recording(self, estimate: Estimate) -> Iterator[None]:
        """Called by the optimizer: records a step, unless it was taken before."""
        if estimate.step < self._end:
            self._rows.pop(estimate.step, None)
            yield
            return
        self._generator.put_back()
        row = self._row(estimate.step, estimate.eps, estimate.coeffs.numpy(), estimate.loss)
        if self._record is None:
            yield
            return
        self._write_metrics()
        self._record.append(row)  # before the parameters change, so that the step can be taken again
        try:
            yield
        except Exception:
            self._record.take_back(row.step)
            raise
        self._unwritten = row
        self._running.close()  # the rest of the pass is no training

    def close(self, *, finish: bool = True) -> None:
        """Ends the run: writes weights.safetensors and loss.png if it has no step to take again, and closes the folder.

        Raises JournalError or CheckpointError if a file can't be written.
        """
        if self._optimizer.log is self:
            self._optimizer.log = None
        if self._record is None:
            return
        try:
            with self._record.folder as folder, deferred_interrupts():
                if finish and self._optimizer.steps_taken == folder.journal.next_step:
                    self._write_metrics()
                    self._finish(folder)
        finally:
            self._record = None

    def __enter__(self) -> DurableRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(finish=error is None or isinstance(error, (Exception, KeyboardInterrupt)))
        except (JournalError, CheckpointError):
            if error is None:
                raise

    def _finish(self, folder: RunFolder) -> None:
        metrics = list(metrics_from_journal(folder.journal, self._per_step))
        title = type(self._state.model).__name__
        folder.finish(self._state.weights(), None, lambda path: plot_losses(path, metrics, title, {}, unit=""))

    def _save_first(self) -> None:
        """Saves the state before the first step of a new run."""
        if self.resumed_from is None and not self._saved:
            self._save()

    def _save(self) -> None:
        if self._record is not None:
            with deferred_interrupts():
                self._record.checkpoint(self._optimizer.steps_taken, self._state.weights(), self._state.take())
        self._saved = True

    def _write_metrics(self) -> None:
        """Writes the line of the last step, with its scores: once no more of them can come."""
        assert self._record is not None
        if not self._begun:
            self._record.begin_metrics()
            self._begun = True
        elif self._unwritten is not None:
            scores = self._record.folder.journal.scores(self._unwritten.step + 1)
            self._record.metrics(self._unwritten, scores)
        self._unwritten = None

    def _row(self, step: int, eps: Sequence[float], coeffs: Any, loss: float) -> Row:
        hyper = [hyper_parameters(group) for group in self._optimizer.param_groups]
        groups = tuple(Group(h.lr, h.eps, h.weight_decay, h.sign) for h in hyper)
        first = Group(hyper[0].lr, eps[0], 0.0, 1.0)
        more = () if all(group == first for group in groups) else groups
        return Row(step, first.lr, first.eps, self._optimizer.seed, coeffs, loss, self._clock.elapsed(), more)


def apply_row(optimizer: Any, row: Row) -> None:
    """Takes the step of a row again, with its hyper-parameters. Raises as `ZeroOrder.replay`."""
    said = row.groups or [Group(row.lr, row.eps, 0.0, 1.0)] * len(optimizer.param_groups)
    for group, (lr, eps, weight_decay, sign) in zip(optimizer.param_groups, said, strict=True):
        group.update(lr=lr, eps=None if eps == lr else eps, weight_decay=weight_decay, maximize=sign < 0)
    optimizer.replay(torch.from_numpy(row.coeffs.copy()))
