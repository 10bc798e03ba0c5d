"""Starts a run: a new one, one that was stopped, or one that branches off another."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..command_line import flag
from ..errors import ReplicaError, UsageError
from ..extensions import require_allowed
from ..interrupts import InterruptGate
from ..run.arithmetic import record_arithmetic
from ..run.best import Best, best_of, set_of
from ..run.entries import is_half_made
from ..run.files import read_json
from ..run.folder import VOCABULARY_LIMIT, RunFolder
from ..run.restore import check_config, open_for_reading
from .arithmetic import arithmetic_of, check_run
from .build import Run, build, build_solver, read_tokenizer
from .config import FREE_ON_RESUME, TrainConfig, as_json, imports_of, read_config, task_options
from .forward import is_flash
from .ranks import Ranks
from .restore import choose_step, restore

Warn = Callable[[str], None]

_NOT_COMPARED = ("out", "lr_search")
"""Fields that may differ between the config of a run and the arguments that started it."""

_LOCK_TIMEOUT = 60.0
"""Seconds that a restarted process waits until its predecessor has released the folder."""


class Beginning(NamedTuple):
    """A run that is ready for its next step.

    folder: The open run folder on rank 0, None on other ranks. step: The number of steps taken so far. first_step: The
    first step of the journal, which is above 0 for a fork. scored: The sets that the present parameters were scored on.
    best: The best of the steps so far.
    """

    run: Run
    folder: RunFolder | None
    step: int
    first_step: int
    scored: frozenset[str]
    best: Best | None


def begin(config: TrainConfig, gate: InterruptGate, ranks: Ranks, warn: Warn) -> Beginning:
    """Starts, resumes or forks the run that the config describes, on all ranks.

    Raises UsageError, JournalError or CheckpointError if that is impossible, and leaves existing folders unchanged.
    Raises ReplicaError if it is impossible on another rank.
    """
    opened: list[tuple[Run, RunFolder, int]] = []
    patience = _LOCK_TIMEOUT if ranks.is_launched else 0.0

    def open_on_rank_0() -> list[Any]:
        opened.append(
            _start_new(config, gate, ranks, warn, patience)
            if config.resume is None
            else _reopen(config, gate, warn, patience)
        )
        run, folder, step = opened[0]
        tokenizer = None if config.task == "owt" else run.task.tokenizer_json
        best = best_of((at, loss) for at, loss in folder.journal.losses(set_of(config.keep)) if at <= step)
        return [step, folder.journal.first_step, [*folder.journal.scores(step)], best, tokenizer]

    try:
        # Rank 0 goes first: it may write data files that the other ranks read.
        step, first_step, scored, best, tokenizer = ranks.broadcast(open_on_rank_0, _read_place)
        run = opened[0][0] if opened else build(replace(config, resume=None), gate, tokenizer)
        ranks.join(run.solver)
        if step > 0:
            share_state(run, ranks)
    except BaseException:
        if opened:
            opened[0][1].close()
        raise
    return Beginning(run, opened[0][1] if opened else None, step, first_step, scored, best)


def share_state(run: Run, ranks: Ranks) -> None:
    """Sends the parameters and the solver's state of rank 0 to all ranks."""
    if ranks.count == 1:
        return
    model, solver = ranks.broadcast_state(run.model.state_dict(), run.solver.state() if ranks.rank == 0 else None)
    if ranks.rank != 0:
        try:
            run.model.load_state_dict(model)
            run.solver.load_state(solver)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ReplicaError("rank 0 sent the state of another solver") from error


def _read_place(value: Any) -> tuple[int, int, frozenset[str], Best | None, str | None]:
    """Reads the fields of a `Beginning` but the first two, and the tokenizer.json, as rank 0 announces them."""
    match value:
        case [step, first_step, [*scored], best, (str() | None) as tokenizer] if (
            type(step) is type(first_step) is int
            and 0 <= first_step <= step
            and all(isinstance(name, str) for name in scored)
        ):
            return step, first_step, frozenset(scored), _read_best(best), tokenizer
    raise ValueError("it is not the place where a run begins")


def _read_best(value: Any) -> Best | None:
    match value:
        case None:
            return None
        case [int(step), float(loss), int(since)]:
            return Best(step, loss, since)
    raise ValueError("it is not the best step of a run")


def _start_new(
    config: TrainConfig, gate: InterruptGate, ranks: Ranks, warn: Warn, patience: float
) -> tuple[Run, RunFolder, int]:
    run = build(config, gate)
    ranks.join(run.solver)  # refuses a solver before there is a folder
    step = 0 if config.fork is None else _start_from(config, run, gate, warn)
    folder = RunFolder.create(
        config.out,
        as_json(config),
        run.task.symbols,
        tokenizer=run.task.tokenizer_json,
        name=config.task.rpartition(":")[2],
        first_step=step,
        patience=patience,
    )
    try:
        record_arithmetic(folder.path, step, arithmetic_of(config, run.model))
    except OSError as error:
        folder.discard()
        raise UsageError(f"can't write to the folder {folder.path}: {error.strerror}") from error
    return run, folder, step


def _reopen(config: TrainConfig, gate: InterruptGate, warn: Warn, patience: float) -> tuple[Run, RunFolder, int]:
    assert config.resume is not None
    folder = RunFolder.open(config.resume, patience=patience)
    try:
        run = build(replace(config, resume=None), gate, read_tokenizer(folder.path))
        check_run(folder.path, config, run.model)
        symbols = read_json(folder.path / "vocabulary.json", VOCABULARY_LIMIT)
        if symbols != list(run.task.symbols):
            raise UsageError(f"the data of {folder.path} have changed: their vocabulary is another one now")
        step = restore(folder.path, read_config(folder.path), folder.journal, run.solver, None, warn, run.batch)
        if step is None:  # stopped before its first checkpoint
            step = folder.journal.first_step
            if config.fork is not None:
                _start_from(replace(config, fork_step=step), run, gate, warn)
            folder.journal.truncate(step)
        record_arithmetic(folder.path, step, arithmetic_of(config, run.model))
    except (OSError, ValueError) as error:
        folder.close()
        raise UsageError(f"can't resume {folder.path}: {error}") from error
    except BaseException:
        folder.close()
        raise
    return run, folder, step


def _start_from(config: TrainConfig, run: Run, gate: InterruptGate, warn: Warn) -> int:
    """Copies the parameters of a step of another run, and its solver's state if it fits. Returns the step."""
    assert config.fork is not None
    source = read_config(config.fork)
    require_allowed(imports_of(source), config.fork, config.allow_import)
    if source.model == config.model and is_flash(source) != is_flash(config):
        raise UsageError(
            f"{config.fork} has --forward {source.forward}, and FlashRNN numbers the same parameters in another order: "
            "leave --forward out"
        )
    goes_on = task_options(source) == task_options(config)  # the batches are the same
    with open_for_reading(config.fork) as journal:
        check_config(config.fork, journal)  # before a model is built from it
        step = choose_step(config.fork, config.fork_step, source.keep, journal, warn)
        if step >= config.steps:
            reached = f"the fork begins at step {step} of {config.fork}, but --steps is {config.steps}"
            raise UsageError(f"{reached}: raise it")
        solver = build_solver(replace(source, device=config.device), run.task.vocab_size, gate)
        batch_of = run.batch if goes_on else None
        if restore(config.fork, source, journal, solver, step, warn, batch_of) is None:
            raise UsageError(f"{config.fork} was stopped before its first checkpoint: there is nothing to fork")
    try:
        run.model.load_state_dict(solver.model.state_dict())
    except RuntimeError as error:
        raise UsageError(f"the model of {config.fork} has other sizes: omit the flags that set sizes") from error
    try:
        run.solver.load_state(solver.state())
    except ValueError as error:
        warn(f"the fork takes only the parameters of {config.fork}: {error}")
        run.solver.start_at(step)
    if not goes_on:
        run.solver.forget()
    return step


def resume_existing(config: TrainConfig) -> TrainConfig:
    """Returns a config that resumes the run in the folder `out`, or the config itself if there is no such run.

    After a failure torchrun restarts the program with its first arguments, and the run must then continue. Without
    `out`, the folder is runs/TASK-ID, with the id that torchrun gives the job.

    Raises UsageError if the folder holds a run with other flags, or if the job has no id.
    """
    if config.resume is not None:
        return config
    out = config.out or _folder_of_job(config.task)
    config = replace(config, out=out)
    if not out.is_dir() or not any(out.iterdir()) or is_half_made(out):
        return config
    stored = read_config(out)
    ignored = (*FREE_ON_RESUME, *_NOT_COMPARED, *(["lr"] if config.lr_search else []))
    for field in fields(TrainConfig):
        given, was = getattr(config, field.name), getattr(stored, field.name)
        if field.name not in ignored and given != was:
            raise UsageError(
                f"{out} holds a run with {flag(field.name)} {was}, not {given}: give --out a new folder, or continue "
                "the run with its own flags"
            )
    free = {name: getattr(config, name) for name in FREE_ON_RESUME}
    return replace(stored, **{**free, "resume": out})


def _folder_of_job(task: str) -> Path:
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job == "none":
        raise UsageError("give --out: a run of several processes needs it to continue after a restart")
    return Path("runs") / f"{task.rpartition(':')[2]}-{job}"
