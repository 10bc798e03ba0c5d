"""Rebuilds the weights of a run after any of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..durable.rebuild import rebuild
from ..durable.settings import is_loop
from ..errors import UsageError
from ..extensions import require_allowed
from ..interrupts import InterruptGate
from ..run.files import read_json
from ..run.folder import VOCABULARY_LIMIT, checkpoint_steps
from ..run.restore import check_config, open_for_reading
from ..train.build import build_solver
from ..train.config import imports_of, read_config
from ..train.restore import choose_step, restore


class Replayed(NamedTuple):
    """What `replay` returns.

    weights: the model's state_dict, after `step` steps. replayed: number of steps taken again since the nearest
    checkpoint, which took so many `seconds`.
    """

    weights: Mapping[str, Tensor]
    step: int
    replayed: int
    seconds: float


def replay(
    run: str | Path,
    step: int | Literal["best"] | None = None,
    warn: Callable[[str], None] = lambda warning: None,
    *,
    allow_import: bool = False,
) -> Replayed:
    """Rebuilds the weights that a run had after `step` steps, bit for bit. It needs neither the task nor its data.

    run: folder of the run, which may still be training; nothing in it changes. step: None means the last one, and
        "best" the one with the lowest loss of the set that --keep named, validation by default.
    warn: is called with a message for each checkpoint that is damaged and passed over.

    allow_import: import the code outside zo_kernels that config.json names, which runs it. The run of a loop
        (`zo_kernels.durable`) names the function that builds its model.

    The weights are on the run's device, or on the CPU where there is no GPU. They do not depend on the device, except
    to rounding with a dense rule.

    Raises UsageError if there is no such folder or step, or if there is code to import and that is not allowed; and
    JournalError or CheckpointError for damaged files.
    """
    run = Path(run)
    if is_loop(run):
        if isinstance(step, str):
            raise UsageError(f"{run} is a run of a loop, which keeps no best step: give the number of a step")
        return Replayed(*rebuild(run, step, warn, allow_import=allow_import))
    config = read_config(run)
    require_allowed(imports_of(config), run, allow_import)
    if not torch.cuda.is_available():
        config = replace(config, device="cpu")
    try:
        symbols = read_json(run / "vocabulary.json", VOCABULARY_LIMIT)
    except (OSError, ValueError) as error:
        raise UsageError(f"{run / 'vocabulary.json'} can't be read: {error}") from error
    if not isinstance(symbols, list) or not symbols:
        raise UsageError(f"{run / 'vocabulary.json'} is not a vocabulary: it must be a JSON list")
    with open_for_reading(run) as journal:
        check_config(run, journal)  # before a model is built from it
    solver = build_solver(config, len(symbols), InterruptGate())
    with open_for_reading(run) as journal:
        target = choose_step(run, step, config.keep, journal, warn)
        nearest = max((s for s in checkpoint_steps(run) if s <= target), default=0)
        started = time.perf_counter()
        reached = restore(run, config, journal, solver, target, warn)
        seconds = time.perf_counter() - started
    if reached is None:
        raise UsageError(f"{run} was stopped before its first step: it has no weights")
    return Replayed(solver.model.state_dict(), reached, reached - nearest, seconds)
