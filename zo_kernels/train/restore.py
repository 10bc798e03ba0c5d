"""Rebuilds the state of a run, bit for bit, from a checkpoint and the journal rows after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, GridRangeError, JournalError, UsageError
from ..run.best import best_step
from ..run.journal import Journal
from ..run.restore import Warn, find_start, last_step
from ..tasks import Batch
from .config import TrainConfig
from .solvers import Solver, lr_at


def restore(
    run: Path,
    config: TrainConfig,
    journal: Journal,
    solver: Solver,
    step: int | None,
    warn: Warn,
    batch_of: Callable[[int], Batch] | None = None,
) -> int | None:
    """Restores the solver and its model to the state after `step` steps of a run. None means the last step.

    batch_of: the batch of a step. A stateful run that is to go on needs it: the states that it carries are computed
    again from the checkpoint on. Without it the parameters are restored all the same.

    A solver that can't replay rows goes back to the last checkpoint if step is None. Returns the step that was
    restored, or None, without changing anything, if the run was stopped before its first checkpoint.

    Raises as `find_start` does.
    """
    checkpoint, target = find_start(run, journal, step, warn)
    if checkpoint is None:
        return None
    if not solver.replays and step is not None and checkpoint.step != target:
        raise UsageError(
            f"step {target} of {run} can't be rebuilt: the journal of --solver {config.solver} holds no gradients, and "
            f"the nearest checkpoint is that of step {checkpoint.step}"
        )
    try:
        solver.model.load_state_dict(checkpoint.model)
    except RuntimeError as error:  # as if vocabulary.json has been changed
        raise CheckpointError(f"the checkpoints of {run} do not fit its config.json and vocabulary.json") from error
    solver.load_state(checkpoint.solver)
    if not solver.replays:
        return checkpoint.step
    for row in journal.rows(checkpoint.step, target):
        if (row.seed, row.lr) != (config.seed, lr_at(config, row.step)):
            raise JournalError(f"the row of step {row.step} in {journal.path} belongs to another run")
        try:
            solver.replay(row, batch_of(row.step) if config.stateful and batch_of is not None else None)
        except (ValueError, GridRangeError) as error:
            raise JournalError(f"step {row.step} of {run} can't be replayed: {error}") from error
    return target


def choose_step(run: Path, step: int | str | None, keep: str | None, journal: Journal, warn: Warn) -> int:
    """The step that is asked for: None is the last one, and "best" the best of the set that --keep named.

    Raises UsageError for a run without a best step.
    """
    if step is None:
        return last_step(run, journal, warn)
    return step if isinstance(step, int) else best_step(run, journal, keep)
