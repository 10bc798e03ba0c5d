"""Rebuilds the state of a run, bit for bit, from a checkpoint and the journal rows after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, GridRangeError, JournalError, UsageError
from ..run.best import best_step
from ..run.config import CONFIG_LIMIT
from ..run.entries import JOURNAL
from ..run.files import read_text
from ..run.folder import checkpoint_steps, config_digest, find_checkpoint, own_checkpoint
from ..run.journal import Journal
from ..tasks import Batch
from .config import TrainConfig
from .solvers import Solver, lr_at

Warn = Callable[[str], None]


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

    Raises UsageError for a step that can't be rebuilt, and JournalError or CheckpointError if a file is damaged or the
    journal belongs to another config.
    """
    check_config(run, journal)
    while journal.warnings:
        warn(journal.warnings.pop(0))
    target = last_step(run, journal, warn) if step is None else step
    is_beyond = target > journal.next_step
    if target < journal.first_step or (is_beyond and target not in checkpoint_steps(run)):
        raise UsageError(f"{run} has steps {journal.first_step} to {journal.next_step}, not {target}")
    checkpoint = own_checkpoint(run, journal, target) if is_beyond else find_checkpoint(run, journal, target, warn)
    if checkpoint is None:
        return None
    if is_beyond:
        missing = f"the rows of steps {journal.next_step} to {target - 1} are missing from {journal.path}"
        warn(f"{missing}: going on from the checkpoint behind them")
    if not solver.replays and step is not None and checkpoint.step != target:
        raise UsageError(
            f"step {target} of {run} can't be rebuilt: the journal of back-propagation holds no gradients, and the "
            f"nearest checkpoint is that of step {checkpoint.step}"
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


def last_step(run: Path, journal: Journal, warn: Warn) -> int:
    """The last step of a run: that of its last row or, if a power cut took the newest rows, of a newer checkpoint.

    Calls `warn` for each checkpoint that is passed over, as `find_checkpoint` does.
    """
    for step in reversed(checkpoint_steps(run)):
        if step > journal.next_step:
            try:
                return own_checkpoint(run, journal, step).step
            except CheckpointError as error:
                warn(f"{error}; going back to an earlier one")
    return journal.next_step


def open_for_reading(run: Path) -> Journal:
    """Opens the journal of a run, which may still be training, in a folder that need not be writable.

    Raises JournalError.
    """
    return Journal.open(run / JOURNAL, writable=False)


def check_config(run: Path, journal: Journal) -> None:
    """Raises JournalError if config.json is not what it was when the run began."""
    try:
        text = read_text(run / "config.json", CONFIG_LIMIT)
    except (OSError, ValueError) as error:
        raise JournalError(f"{run / 'config.json'} can't be read: {error}") from error
    if journal.digest_before(journal.first_step) != config_digest(text):
        raise JournalError(f"{run / 'config.json'} is not the config that {journal.path.name} belongs to")
