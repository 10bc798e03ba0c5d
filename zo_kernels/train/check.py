"""Which configs are refused before a run begins."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import get_args

from ..command_line import flag
from ..distributed.replicas import SPLITS
from ..errors import UsageError
from ..estimators import get_estimator
from ..extensions import require_allowed
from ..models import MODEL_NAMES, find_model
from ..optim.dense import DENSE_RULES
from ..run.best import BEST
from ..tasks import find_task
from .bptt import OPTIMIZERS
from .config import (
    FIELD_TYPES,
    FREE_ON_RESUME,
    TASK_OPTIONS,
    TrainConfig,
    check_types,
    imports_of,
    read_config,
    task_parameters,
)
from .forward import check_forward
from .loggers import LOGGERS
from .options import DEVICES, FORWARDS, SOLVERS

_CHOICES: dict[str, Iterable[str]] = {
    "solver": SOLVERS,
    "optimizer": OPTIMIZERS,
    "dense": DENSE_RULES,
    "log": LOGGERS,
    "device": DEVICES,
    "split": SPLITS,
    "forward": FORWARDS,
}
_FINDERS: dict[str, Callable[[str], object]] = {
    "task": find_task,
    "model": lambda name: name in MODEL_NAMES or find_model(name),
    "estimator": get_estimator,
}
"""Fields whose value may be the name of code outside the package."""
_POSITIVE = (
    *("steps", "validate_every", "threads", "micro_batch_size", "eval_batch_size", "eval_tokens"),
    *("checkpoint_every", "keep_checkpoints", "check_every", "segment_length", "patience", "credit_length"),
)
_MOST_THREADS = 128
"""Of any machine, and four for each core of a larger one. OpenMP ends the process if it can't create a thread."""

_OPTIONS_OF = {
    "zo": (
        "estimator",
        "distribution",
        "transforms",
        "dense",
        "segment_length",
        "max_cosine_distance",
        "precision",
        "forward",
        "split",
        "repair",
    ),
    "activity": ("credit_length", "local_gradient", "optimizer"),
    "bptt": ("optimizer", "checkpoint_length", "segment_length", "max_cosine_distance", "precision"),
}
"""The options that not all solvers have, of each."""


def check(config: TrainConfig) -> None:
    """Refuses what the constructors of the task, the model and the optimizer do not check themselves.

    Raises UsageError for a value of another type, of an unknown name or out of range; for an option that the task or
    the solver needs, or does not have; and for options that exclude each other.
    """
    check_types(config)
    if (run := config.fork if config.resume is None else config.resume) is not None:
        require_allowed(imports_of(read_config(run)), run, config.allow_import)
    for name, find in _FINDERS.items():
        try:
            find(getattr(config, name))
        except ValueError as error:
            raise UsageError(str(error)) from error
    for name, known in _CHOICES.items():
        _check_choice(name, getattr(config, name), tuple(known))
    if config.resume is not None:
        _check_resumed(config, read_config(config.resume))
    _check_task(config)
    _check_ranges(config)
    _check_solver(config)
    check_forward(config)
    if config.split != "probes" and config.micro_batch_size is None:
        raise UsageError(f"--split {config.split} splits the micro-batches: give --micro-batch-size too")
    if config.fork_step is not None and config.fork is None:
        raise UsageError("--fork-step needs --fork, the run that the step belongs to")
    if isinstance(config.fork_step, str) and config.fork_step != BEST:
        raise UsageError(f"--fork-step must be a number of steps, or best, not {config.fork_step}")
    if config.keep is not None and not re.fullmatch(f"{BEST}(:.+)?", config.keep):
        raise UsageError(f"--keep must be best, or best: and the name of a set, such as best:longer, not {config.keep}")


def _check_choice(name: str, value: str | tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    for each in value if isinstance(value, tuple) else (value,):
        if each is not None and each not in known:
            raise UsageError(f"unknown {name} {each!r}: choose one of {', '.join(known)}")


def _check_task(config: TrainConfig) -> None:
    try:
        known = task_parameters(config.task)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for name in TASK_OPTIONS:
        if name in known and known[name].default is not None and getattr(config, name) is None:
            raise UsageError(f"the task {config.task} needs {flag(name)}")
        if name not in known and getattr(config, name) not in (None, False):
            raise UsageError(f"{flag(name)} does not apply to the task {config.task}")


def _check_ranges(config: TrainConfig) -> None:
    for name, kind in FIELD_TYPES.items():
        value = getattr(config, name)
        if int in (kind, *get_args(kind)) and name != "seed" and abs(value if isinstance(value, int) else 0) >= 2**63:
            raise UsageError(f"{flag(name)} must be below 2^63, not {value}")
    if config.threads is not None and config.threads > (most := max(_MOST_THREADS, 4 * (os.cpu_count() or 1))):
        raise UsageError(f"--threads must be at most {most}, not {config.threads}")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag(name)} must be at least 1, not {value}")
    if not (math.isfinite(config.timeout) and config.timeout > 0):
        raise UsageError(f"--timeout must be positive and finite, not {config.timeout}")
    if config.precision == "bfloat16" and math.frexp(config.eps)[0] != 0.5:
        raise UsageError(
            f"--precision bfloat16 needs an --eps that is a power of two, such as 0.03125, not {config.eps}"
        )
    if config.probes >= 2**32:
        raise UsageError(f"--probes must be below 2^32, not {config.probes}")
    if math.isfinite(config.eps) and config.eps > 0 and not 2.0**-60 <= config.eps <= 2.0**60:
        raise UsageError(f"--eps must be in [2^-60, 2^60], not {config.eps}")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise UsageError(f"--lr must be positive and finite, or search, not {config.lr}")
    if not 0 < config.lr_decay <= 1:
        raise UsageError(f"--lr-decay must be above 0 and at most 1, not {config.lr_decay}")
    if not 0 <= config.seed < 2**64:
        raise UsageError(f"--seed must be in [0, 2^64), not {config.seed}")


def _check_solver(config: TrainConfig) -> None:
    own = _OPTIONS_OF[config.solver]
    others = {name for names in _OPTIONS_OF.values() for name in names if name not in own}
    for field in fields(TrainConfig):
        if field.name in others and getattr(config, field.name) != field.default:
            raise UsageError(f"{flag(field.name)} does not apply to --solver {config.solver}")
    if config.max_cosine_distance is not None and config.micro_batch_size is None:
        raise UsageError("--max-cosine-distance compares micro-batches: give --micro-batch-size too")


def _check_resumed(config: TrainConfig, stored: TrainConfig) -> None:
    for field in fields(TrainConfig):
        value = getattr(stored, field.name)
        if field.name not in FREE_ON_RESUME and getattr(config, field.name) != value:
            raise UsageError(
                f"{flag(field.name)} is {value} in {config.resume}, and a resumed run keeps it: leave it out, or start "
                f"a new run from that one with --fork {config.resume}"
            )
