"""How a run begins: anew, where it was stopped, or from a step of another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from ..command_line import flag
from ..errors import UsageError
from ..interrupts import InterruptGate
from ..run.folder import JOURNAL, RunFolder
from .build import Run, build, build_solver
from .config import FREE_ON_RESUME, TrainConfig, as_json, read_config
from .ranks import Ranks
from .restore import open_for_reading, restore

Warn = Callable[[str], None]

_UNTOLD = ("out", "lr_search")
"""Fields that a run's config and the arguments it was started with may differ in."""

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
            _start_new(config, gate, warn)
            if config.resume is None
            else _reopen(config, gate, warn, _PATIENCE if ranks.is_launched else 0.0)
        )
        _, folder, step = opened[0]
        return step, folder.journal.first_step, bool(folder.journal.scores(step))

    try:
        step, first_step, is_scored = ranks.broadcast(on_first)  # first, for it may make files of data that others read
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
    state = ranks.broadcast_state([run.model.state_dict(), run.solver.state()] if ranks.rank == 0 else None)
    if ranks.rank != 0:
        run.model.load_state_dict(state[0])
        run.solver.load_state(state[1])


def _start_new(config: TrainConfig, gate: InterruptGate, warn: Warn) -> tuple[Run, RunFolder, int]:
    run = build(config, gate)
    step = 0 if config.fork is None else _start_from(config, run, gate, warn)
    return run, RunFolder.create(config.out, as_json(config), run.task.symbols, name=config.task, first_step=step), step


def _reopen(config: TrainConfig, gate: InterruptGate, warn: Warn, patience: float) -> tuple[Run, RunFolder, int]:
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


def resume_existing(config: TrainConfig) -> TrainConfig:
    """The config to begin with: that of the run in the folder `out`, if there is one, to be resumed.

    torchrun starts a run again, with the arguments it had at first, when a process died or processes came or left.
    Without `out`, the folder is runs/TASK-ID with torchrun's id of the job. What a run left that died before it began
    is removed.

    Raises UsageError if the folder holds a run with other flags, or nothing says which folder it is.
    """
    if config.resume is not None:
        return config
    out = config.out or _folder_of_job(config.task)
    config = replace(config, out=out)
    if not out.is_dir() or not any(out.iterdir()) or _clear_unbegun(out):
        return config
    stored = read_config(out)
    untold = (*FREE_ON_RESUME, *_UNTOLD, *(["lr"] if config.lr_search else []))
    for field in fields(TrainConfig):
        given, was = getattr(config, field.name), getattr(stored, field.name)
        if field.name not in untold and given != was:
            raise UsageError(
                f"{out} holds a run whose {flag(field.name)} is {was}, not {given}: give --out a new folder, or this "
                "run's own flags to go on with it"
            )
    free = {name: getattr(config, name) for name in FREE_ON_RESUME}
    return replace(stored, **{**free, "resume": out})


def _folder_of_job(task: str) -> Path:
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job == "none":
        raise UsageError("a run of several processes needs --out, the folder it goes on from when it is started again")
    return Path("runs") / f"{task}-{job}"


def _clear_unbegun(path: Path) -> bool:
    """Removes what is left of a run that was killed while its folder was being made. False if it is anything else.

    Raises UsageError if config.json is not that of a run.
    """
    checkpoints, made = path / "checkpoints", {"checkpoints", "config.json", "vocabulary.json"}
    names = {item.name.removeprefix(".") for item in path.iterdir()}
    if not checkpoints.is_dir() or any(checkpoints.iterdir()):
        return False
    if not all(name in made or name.startswith(JOURNAL) for name in names):  # with metrics.jsonl, it can be resumed
        return False
    if (path / "config.json").exists():
        read_config(path)  # raises if it is somebody else's
    shutil.rmtree(path)
    return True
