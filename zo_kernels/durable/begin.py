"""Begins a durable run, or goes on with one, on all ranks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..distributed.agreement import agree
from ..distributed.announcements import Announcements
from ..distributed.launch import is_launched
from ..distributed.process_group import shared_store
from ..distributed.replicas import Replicas
from ..errors import ReplicaError, UsageError
from ..optim import ZeroOrder
from ..run.arithmetic import check_arithmetic, record_arithmetic
from ..run.entries import is_half_made
from ..run.folder import RunFolder
from ..run.journal import Group, Row
from ..run.metrics import PerStep
from ..run.record import StepRecord
from ..run.restore import find_start
from .loop import DurableRun
from .settings import Settings, arithmetic_of, as_config, check_settings, name_of_build, read_settings, settings_of
from .share import SharedState
from .state import LoopState

_PATIENCE = 60.0
"""Seconds to wait for another rank, and after a restart for the lock of a predecessor."""

_logger = logging.getLogger("zo_kernels")


class _Place(NamedTuple):
    """Where a run goes on: from the checkpoint of a step (None: it is new) and these rows, after so many seconds."""

    resumed_from: int | None
    rows: Sequence[Row]
    seconds: float
    solver: Any


def run(
    folder: str | Path,
    model: Any,
    optimizer: ZeroOrder,
    *,
    build: str | Callable[[], Any] | None = None,
    checkpoint_every: int = 200,
    keep_checkpoints: int = 3,
    tokens_per_step: int = 0,
    allow_other_arithmetic: bool = False,
    **state: Any,
) -> DurableRun:
    """Makes a loop's run durable: kill it at any moment, start the script again, and it ends with the same bits.

        with zo_kernels.durable.run("runs/mine", model, opt, scheduler=scheduler) as run:
            for step in run.steps(1000):
                opt.step(loss_of(step))
                scheduler.step()

    Each step writes its coefficients to the journal of the folder before it changes the parameters. If the folder has
    a run, the model, the optimizer and the state become those of its last checkpoint, and the loop begins there.

    folder: a new one, or that of the run so far.
    model: the module that has all parameters of the optimizer.
    optimizer: a `ZeroOrder` or CDRGE, on one process or on replicas; not over sharded parameters.
    build: a function of a module, or its name package.module:function, that returns (model, optimizer) as the script
        builds them. `zo_kernels.replay` calls it to rebuild a step that has no checkpoint.
    checkpoint_every: steps from one checkpoint to the next; so many are taken again after a restart, at most.
    keep_checkpoints: checkpoints that stay, besides the first.
    tokens_per_step: for `zo_kernels.plot`. 0 where there are none.
    allow_other_arithmetic: go on although losses will be rounded otherwise than before.
    state: what else changes from step to step, such as schedulers, data loaders or generators, by any names: objects
        with `state_dict` and `load_state_dict`, or torch.Generators.

    The state of torch's own generators is saved too. A step leaves the one of the CPU as it found it.

    Raises UsageError for a folder that is in use or has the run of another model or optimizer, and for arguments out of
    range; and JournalError or CheckpointError for damaged files.
    """
    path = Path(folder)
    _check(model, optimizer, checkpoint_every, keep_checkpoints, tokens_per_step)
    settings = settings_of(model, optimizer, name_of_build(build))
    loop_state = LoopState(model, optimizer, state)
    has_one_closure = optimizer.max_cosine_distance is None
    forwards = optimizer.estimator.forwards(optimizer.probes) if has_one_closure else 0
    per_step = PerStep(forwards, tokens_per_step)
    replicas = _replicas_of(optimizer)
    records: list[StepRecord] = []
    places: list[_Place] = []

    def open_on_rank_0() -> int | None:
        record = StepRecord(_open(path, settings, optimizer), per_step, keep_checkpoints)
        records.append(record)
        places.append(_restore(record, loop_state, optimizer, allow_other_arithmetic))
        return places[0].resumed_from

    try:
        if replicas is None:
            open_on_rank_0()
            place = places[0]
        else:
            place = _share(replicas, open_on_rank_0, places, settings, loop_state, str(path))
    except BaseException:
        for record in records:
            record.folder.discard()
        raise
    return DurableRun(
        path,
        loop_state,
        place.rows,
        records[0] if records else None,
        per_step=per_step,
        checkpoint_every=checkpoint_every,
        resumed_from=place.resumed_from,
        seconds=place.seconds,
        replicas=replicas,
    )


def _check(model: Any, optimizer: Any, checkpoint_every: int, keep_checkpoints: int, tokens_per_step: int) -> None:
    if not isinstance(optimizer, ZeroOrder):
        raise UsageError(f"the optimizer must be a ZeroOrder or CDRGE, not a {type(optimizer).__name__}")
    if optimizer.log is not None:
        raise UsageError("the optimizer is in a durable run already: end that one first")
    if optimizer.space.shards is not None:
        raise UsageError("the parameters are sharded, which a durable run can't save: use replicas")
    for name, value, least in (
        ("checkpoint_every", checkpoint_every, 1),
        ("keep_checkpoints", keep_checkpoints, 1),
        ("tokens_per_step", tokens_per_step, 0),
    ):
        if type(value) is not int or value < least:
            raise UsageError(f"{name} must be an integer of at least {least}, not {value!r}")
    if not callable(getattr(model, "state_dict", None)):
        raise UsageError(f"the model must have a state_dict, as a torch module does, not be a {type(model).__name__}")
    held = {x.data_ptr() for x in model.state_dict().values() if isinstance(x, torch.Tensor)}
    if any(p.numel() and p.data_ptr() not in held for p in optimizer.space.parameters):
        raise UsageError("the optimizer has parameters that are not the model's: give the module that has them all")


def _open(path: Path, settings: Settings, optimizer: ZeroOrder) -> RunFolder:
    """Opens the run's folder, or makes it."""
    patience = _PATIENCE if is_launched() else 0.0
    if not os.path.isdir(path) or is_half_made(path) or not any(path.iterdir()):
        first = optimizer.steps_taken
        return RunFolder.create(path, as_config(settings), None, first_step=first, patience=patience)
    if not (path / "config.json").exists():
        raise UsageError(f"the folder {path} is not empty, and not that of a run: give another one")
    check_settings(str(path), read_settings(path), settings)
    return RunFolder.open(path, patience=patience)


def _restore(record: StepRecord, state: LoopState, optimizer: ZeroOrder, allow_other_arithmetic: bool) -> _Place:
    """Restores the state of the last checkpoint, and reads the rows after it."""
    folder, now = record.folder, arithmetic_of(optimizer)
    path, journal = folder.path, folder.journal
    if not allow_other_arithmetic:
        check_arithmetic(path, now, "give allow_other_arithmetic=True")
    checkpoint, target = find_start(path, journal, None, _logger.warning)
    try:
        if checkpoint is None:
            if optimizer.steps_taken != journal.first_step:
                begins = f"{path} begins at step {journal.first_step}"
                raise UsageError(f"{begins}, but the optimizer has taken {optimizer.steps_taken} steps: build it anew")
            record.begin(journal.first_step)
            record_arithmetic(path, journal.first_step, now)
            return _Place(None, [], 0.0, None)
        rows = list(journal.rows(checkpoint.step, target))
        state.restore(str(path), checkpoint.model, checkpoint.solver)
        seconds = record.begin(target)
        record_arithmetic(path, target, now)
        return _Place(checkpoint.step, rows, seconds, checkpoint.solver)
    except OSError as error:
        raise UsageError(f"can't write to {error.filename or path}: {error.strerror}") from error


def _replicas_of(optimizer: ZeroOrder) -> Replicas | None:
    """The processes that take the optimizer's steps together, if there are several."""
    replicas = optimizer.replicas or Replicas.find_default()
    if replicas is None or replicas.world_size == 1:
        return None
    if replicas.world_size != torch.distributed.get_world_size():
        raise UsageError("the replicas are only some of the processes: a durable run takes those of the default group")
    return replicas


def _share(
    replicas: Replicas,
    open_on_rank_0: Callable[[], int | None],
    places: list[_Place],
    settings: Settings,
    state: LoopState,
    where: str,
) -> _Place:
    """Opens the folder on rank 0, and sends its state and its rows to the others."""
    terms = {name: str(value) for name, value in {**settings, "others": state.names()}.items()}
    agree(shared_store(), replicas.rank, replicas.world_size, terms, _PATIENCE)
    announcements = Announcements(shared_store(), replicas.rank, _PATIENCE)

    def read(value: Any) -> int | None:
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError("it is not the place where a run begins")
        return value

    resumed_from = announcements.announce(open_on_rank_0, read)
    if resumed_from is None:
        return _Place(None, [], 0.0, None)
    shared = SharedState(announcements, replicas.rank, replicas.device, _PATIENCE)
    own = [places[0].solver, *_pack_rows(places[0].rows)] if places else None
    weights, received = shared.broadcast(state.weights(), own)
    if places:
        return places[0]
    try:
        solver, numbers, coeffs = received
        rows = _unpack_rows(numbers, coeffs)
    except (TypeError, ValueError, AttributeError) as error:
        raise ReplicaError("rank 0 sent rows that can't be read") from error
    state.restore(where, weights, solver)
    return _Place(resumed_from, rows, 0.0, None)


def _pack_rows(rows: Sequence[Row]) -> tuple[list[list[Any]], Tensor]:
    """The numbers of rows, and their coefficients [rows, probes]."""
    coeffs = torch.from_numpy(np.array([row.coeffs for row in rows], np.float32))
    return [[row.step, row.lr, row.eps, row.seed, row.loss, row.seconds, row.groups] for row in rows], coeffs


def _unpack_rows(numbers: Sequence[Any], coeffs: Tensor) -> list[Row]:
    return [
        Row(step, lr, eps, seed, each.cpu().numpy(), loss, seconds, tuple(Group(*group) for group in groups))
        for (step, lr, eps, seed, loss, seconds, groups), each in zip(numbers, coeffs, strict=True)
    ]
