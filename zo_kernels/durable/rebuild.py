"""Rebuilds the weights of a loop's run after any of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import GridRangeError, JournalError, UsageError
from ..extensions import call, find_function, require_allowed
from ..optim import ZeroOrder
from ..run.folder import checkpoint_steps
from ..run.restore import Warn, find_start, open_for_reading
from .loop import apply_row
from .settings import Settings, check_settings, read_settings, settings_of, without_rows
from .state import LoopState

_GROUP = "zo_kernels.loops"


class Rebuilt(NamedTuple):
    """weights: the model's state_dict after `step` steps, of which `replayed` were taken again in so many `seconds`."""

    weights: Mapping[str, Tensor]
    step: int
    replayed: int
    seconds: float


def rebuild(run: Path, step: int | None, warn: Warn, *, allow_import: bool) -> Rebuilt:
    """Rebuilds the weights that a loop's run had after `step` steps, bit for bit. None means the last step.

    The weights of a checkpoint are read; for those of another step, the run's `build` makes the model and the optimizer
    again, and the rows after the nearest checkpoint are applied. Buffers are those of the checkpoint.

    allow_import: import `build`, which runs its code.

    Raises UsageError for a step that can't be rebuilt, and JournalError or CheckpointError for damaged files.
    """
    settings = read_settings(run)
    with open_for_reading(run) as journal:
        checkpoint, target = find_start(run, journal, step, warn)
        if checkpoint is None:
            raise UsageError(f"{run} was stopped before its first step: it has no weights")
        if checkpoint.step == target:
            return Rebuilt(checkpoint.model, target, 0, 0.0)
        model, optimizer = _build(run, settings, allow_import)
        LoopState(model, optimizer, {}).restore_solver(str(run), checkpoint.model, checkpoint.solver)
        started = time.perf_counter()
        for row in journal.rows(checkpoint.step, target):
            try:
                apply_row(optimizer, row)
            except (ValueError, GridRangeError) as error:
                raise JournalError(f"step {row.step} of {run} can't be replayed: {error}") from error
        seconds = time.perf_counter() - started
    return Rebuilt(model.state_dict(), target, target - checkpoint.step, seconds)


def _build(run: Path, settings: Settings, allow_import: bool) -> tuple[Any, ZeroOrder]:
    """The model and the optimizer that the run's `build` makes. Raises UsageError."""
    name = settings.get("build")
    if not isinstance(name, str):
        steps = ", ".join(map(str, checkpoint_steps(run)))
        raise UsageError(
            f"{run} does not say how its model is built, so that only its checkpoints can be read, those of steps "
            f"{steps}: give zo_kernels.durable.run build= next time"
        )
    require_allowed([name], run, allow_import)
    try:
        build: Callable[..., Any] | None = find_function(name, _GROUP)
        if build is None:
            raise ValueError(f"{name} is no name of a function: it must have the form package.module:function")
        built = call(name, build)
    except ValueError as error:
        raise UsageError(f"{run} can't be rebuilt: {error}") from error
    match built:
        case (model, ZeroOrder() as optimizer) if callable(getattr(model, "load_state_dict", None)):
            check_settings(str(run), without_rows(settings), without_rows(settings_of(model, optimizer, name)))
            return model, optimizer
    raise UsageError(f"{run} can't be rebuilt: {name} must return a model and its ZeroOrder optimizer")
