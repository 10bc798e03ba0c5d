"""The weights of a run after any of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError
from ..interrupts import InterruptGate
from ..run.folder import checkpoint_steps
from ..train.build import build_solver
from ..train.config import read_config
from ..train.restore import open_for_reading, restore


class Replayed(NamedTuple):
    """weights: the model's state_dict. step: after how many steps. replayed: how many of them were taken again, from
    the nearest checkpoint on. seconds: that took."""

    weights: Mapping[str, Tensor]
    step: int
    replayed: int
    seconds: float


def replay(run: str | Path, step: int | None = None, warn: Callable[[str], None] = lambda warning: None) -> Replayed:
    """Rebuilds the weights that a run had after `step` steps (None: after its last), bit for bit, without its data.

    run: a run's folder, which is not changed; it may still be training. warn: told of checkpoints passed over.

    Raises UsageError for a folder or step that is not there, JournalError or CheckpointError if it is damaged.
    """
    run = Path(run)
    config = read_config(run)
    try:
        symbols = json.loads((run / "vocabulary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{run / 'vocabulary.json'} can't be read: {error}") from error
    solver = build_solver(config, len(symbols), InterruptGate())
    with open_for_reading(run) as journal:
        target = journal.next_step if step is None else step
        nearest = max((s for s in checkpoint_steps(run) if s <= target), default=0)
        started = time.perf_counter()
        reached = restore(run, config, journal, solver, target, warn)
        seconds = time.perf_counter() - started
    if reached is None:
        raise UsageError(f"{run} was stopped before it began: it has no weights")
    return Replayed(solver.model.state_dict(), reached, reached - nearest, seconds)
