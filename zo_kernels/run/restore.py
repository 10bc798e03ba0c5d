"""Finds the checkpoint and the journal rows from which the state of a run after a step is rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, JournalError, UsageError
from .checkpoint import Checkpoint
from .config import CONFIG_LIMIT
from .entries import JOURNAL
from .files import read_text
from .folder import checkpoint_steps, config_digest, find_checkpoint, own_checkpoint
from .journal import Journal

Warn = Callable[[str], None]


def find_start(run: Path, journal: Journal, step: int | None, warn: Warn) -> tuple[Checkpoint | None, int]:
    """The checkpoint to rebuild the state after `step` steps from, and that step. None means the last step.

    The rows from the checkpoint to the step are in the journal. There is no checkpoint if the run was stopped before
    its first one. Calls `warn` for each checkpoint that is passed over, and for what else is damaged.

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
    if not is_beyond:
        return find_checkpoint(run, journal, target, warn), target
    checkpoint = own_checkpoint(run, journal, target)
    missing = f"the rows of steps {journal.next_step} to {target - 1} are missing from {journal.path}"
    warn(f"{missing}: going on from the checkpoint behind them")
    return checkpoint, target


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
