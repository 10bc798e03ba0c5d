"""Started again by torchrun with the same arguments: the same run goes on."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from .command_line import FREE_ON_RESUME
from .config import TrainConfig, UsageError, flag
from .run_folder import clear_unbegun
from .stored import read_config

_UNTOLD = ("out", "lr_search")
"""Fields that a run's config and the arguments it was started with may differ in."""


def going_on(config: TrainConfig) -> TrainConfig:
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
    if not out.is_dir() or not any(out.iterdir()) or clear_unbegun(out):
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
