"""How a run begins: anew, where it was stopped, or from a step of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .build import Run, build, build_solver
from .config import TrainConfig, UsageError
from .durable import open_for_reading, restore
from .interrupt_gate import InterruptGate
from .ranks import Ranks
from .run_folder import RunFolder
from .stored import read_config

Warn = Callable[[str], None]

_PATIENCE = 60.0
"""Seconds that a process which was started anew waits for the one before it to let go of the folder."""


class Beginning(NamedTuple):
    """A run, its folder (open, on rank 0 alone), and how many steps it has behind it.

    first_step: of its journal. is_scored: whether the parameters it begins with were validated before.
    """

    run: Run
    folder: RunFolder | None
    step: int
    first_step: int
    is_scored: bool


def begin(config: TrainConfig, gate: InterruptGate, ranks: Ranks, warn: Warn) -> Beginning:
    """Brings a run to its next step, on all ranks.

    Raises UsageError, JournalError or CheckpointError if that can't be; a folder that was there is then what it was.
    Where it is another rank that can't, ReplicaError.
    """
    opened: list[tuple[Run, RunFolder, int]] = []

    def on_first() -> tuple[int, int, bool]:
        opened.append(
            _begun(config, gate, warn)
            if config.resume is None
            else _resumed(config, gate, warn, _PATIENCE if ranks.is_launched else 0.0)
        )
        _, folder, step = opened[0]
        return step, folder.journal.first_step, bool(folder.journal.scores(step))

    try:
        step, first_step, is_scored = ranks.agree(on_first)  # first, for it may make files of data that others read
        run = opened[0][0] if opened else build(replace(config, resume=None), gate)
        ranks.join(run.solver)
        if step > 0:
            share_state(run, ranks)
    except BaseException:
        if opened:
            opened[0][1].close()
        raise
    return Beginning(run, opened[0][1] if opened else None, step, first_step, is_scored)


def share_state(run: Run, ranks: Ranks) -> None:
    """Gives all ranks the parameters and the solver's state of rank 0."""
    state = ranks.spread([run.model.state_dict(), run.solver.state()] if ranks.rank == 0 else None)
    if ranks.rank != 0:
        run.model.load_state_dict(state[0])
        run.solver.load_state(state[1])


def _begun(config: TrainConfig, gate: InterruptGate, warn: Warn) -> tuple[Run, RunFolder, int]:
    run = build(config, gate)
    step = 0 if config.fork is None else _start_from(config, run, gate, warn)
    return run, RunFolder.create(config, run.task.symbols, first_step=step), step


def _resumed(config: TrainConfig, gate: InterruptGate, warn: Warn, patience: float) -> tuple[Run, RunFolder, int]:
    assert config.resume is not None
    folder = RunFolder.open(config.resume, patience=patience)
    try:
        run = build(replace(config, resume=None), gate)
        symbols = json.loads((folder.path / "vocabulary.json").read_text(encoding="utf-8"))
        if symbols != list(run.task.symbols):
            raise UsageError(f"the data of {folder.path} have changed since: they have another vocabulary now")
        step = restore(folder.path, read_config(folder.path), folder.journal, run.solver, None, warn)
        if step is None:  # stopped before its first checkpoint
            step = folder.journal.first_step
            if config.fork is not None:
                _start_from(replace(config, fork_step=step), run, gate, warn)
            folder.journal.truncate(step)
    except (OSError, ValueError) as error:
        folder.close()
        raise UsageError(f"{folder.path} can't be continued: {error}") from error
    except BaseException:
        folder.close()
        raise
    return run, folder, step


def _start_from(config: TrainConfig, run: Run, gate: InterruptGate, warn: Warn) -> int:
    """Gives the run the parameters, and as far as it fits the state, of a step of another run. Returns the step."""
    assert config.fork is not None
    source = read_config(config.fork)
    with open_for_reading(config.fork) as journal:
        step = journal.next_step if config.fork_step is None else config.fork_step
        if step >= config.steps:
            raise UsageError(f"--steps {config.steps} is not beyond step {step} of {config.fork}: raise --steps")
        solver = build_solver(replace(source, device=config.device), run.task.vocab_size, gate)
        if restore(config.fork, source, journal, solver, step, warn) is None:
            raise UsageError(f"{config.fork} was stopped before it began: there is nothing to start from")
    try:
        run.model.load_state_dict(solver.model.state_dict())
    except RuntimeError as error:
        raise UsageError(f"the model of {config.fork} has other sizes: leave the flags that name sizes out") from error
    try:
        run.solver.load_state(solver.state())
    except ValueError as error:
        warn(f"only the parameters are taken from {config.fork}: {error}")
        run.solver.start_at(step)
    return step
