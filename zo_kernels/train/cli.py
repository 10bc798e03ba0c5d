"""From command-line arguments to a checked config."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import tyro

from ..command_line import flag
from ..distributed.replicas import SPLITS
from ..errors import UsageError
from ..estimators import ESTIMATORS
from ..models import MODEL_NAMES
from ..models.presets import PRESETS
from ..optim.dense import DENSE_RULES
from ..tasks import TASKS
from .bptt import OPTIMIZERS
from .config import SOLVERS, TASK_OPTIONS, TrainConfig, read_config
from .defaults import DEFAULTS
from .loggers import LOGGERS

_PROGRAM = "python -m zo_kernels.train"

FREE_ON_RESUME = (
    *("resume", "threads", "backend", "checkpoint_every", "keep_checkpoints", "log", "stop_on_divergence"),
    *("split", "balance", "check_every", "repair", "timeout"),
)
"""Fields that a resumed run may change: they do not change its steps."""

_OF_ZO = ("estimator", "distribution", "transforms", "dense")
_OF_BPTT = ("optimizer", "checkpoint_length")


def parse(arguments: Sequence[str], *, silent: bool = False) -> TrainConfig:
    """The config that command-line arguments ask for. Prints help or a parse error, unless silent, and exits.

    Raises UsageError if there is no such task, preset or run, and as `check` does.
    """
    # First, for the other defaults depend on them.
    early = argparse.ArgumentParser(_PROGRAM, f"{_PROGRAM} [-h] [OPTIONS]", add_help=False, allow_abbrev=False)
    early.add_argument("--task")
    early.add_argument("--preset")
    early.add_argument("--resume", type=Path)
    early.add_argument("--fork", type=Path)
    early.add_argument("--lr")
    given = early.parse_known_args(arguments)[0]
    if given.lr == "search":
        arguments = _without_lr(arguments)
    if given.resume is not None and given.fork is not None:
        raise UsageError("--resume goes on with a run and --fork starts another one: give one of them")
    run = given.resume or given.fork
    if run is not None:
        stored = read_config(run)
        if given.task not in (None, stored.task):
            raise UsageError(f"the task of {run} is {stored.task}, not {given.task}")
        default = stored if given.fork is None else replace(stored, out=None, fork=None, fork_step=None)
    else:
        default = _with_preset(_task_default(given.task or "copy"), given.preset)
    config = tyro.cli(TrainConfig, prog=_PROGRAM, default=default, args=arguments, console_outputs=not silent)
    if given.lr == "search":
        config = replace(config, lr_search=True)
    if config.resume is not None:
        _check_resumed(config, default)
    check(config)
    return config


def check(config: TrainConfig) -> None:
    """Refuses what the constructors of the task, the model and the optimizer can't know to be wrong.

    Raises UsageError for a flag that the task or the solver needs or does not know, and for a value of the run itself
    out of range.
    """
    known = inspect.signature(TASKS[config.task]).parameters
    for name in TASK_OPTIONS:
        if name in known and known[name].default is not None and getattr(config, name) is None:
            raise UsageError(f"the task {config.task} needs {flag(name)}")
        if name not in known and getattr(config, name) is not None:
            raise UsageError(f"{flag(name)} does not apply to the task {config.task}")
    for name in (
        *("steps", "validate_every", "threads", "micro_batch_size"),
        *("checkpoint_every", "keep_checkpoints", "check_every"),
    ):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag(name)} must be at least 1, not {value}")
    for name, choices in (
        ("model", MODEL_NAMES),
        ("solver", SOLVERS),
        ("estimator", tuple(ESTIMATORS)),
        ("optimizer", OPTIMIZERS),
        ("device", ("cpu", "cuda")),
        ("split", SPLITS),
    ):
        _check_choice(name, getattr(config, name), choices)
    if config.dense is not None:
        _check_choice("dense", config.dense, tuple(DENSE_RULES))
    for name in config.log:
        _check_choice("log", name, tuple(LOGGERS))
    _check_solver(config)
    if not (math.isfinite(config.timeout) and config.timeout > 0):
        raise UsageError(f"--timeout must be positive and finite, not {config.timeout}")
    if config.split != "probes" and config.micro_batch_size is None:
        raise UsageError(f"--split {config.split} shares out micro-batches: give --micro-batch-size too")
    if config.precision == "bfloat16" and math.frexp(config.eps)[0] != 0.5:
        raise UsageError(
            f"--precision bfloat16 needs an --eps that is a power of two, such as 0.03125, not {config.eps}"
        )
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise UsageError(f"--lr must be positive and finite, or search, not {config.lr}")
    if not 0 < config.lr_decay <= 1:
        raise UsageError(f"--lr-decay must be above 0 and at most 1, not {config.lr_decay}")
    if not 0 <= config.seed < 2**64:
        raise UsageError(f"--seed must be in [0, 2^64), not {config.seed}")
    if config.fork_step is not None and config.fork is None:
        raise UsageError("--fork-step needs --fork, the run whose step it is")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


def _check_solver(config: TrainConfig) -> None:
    """Refuses flags of the solver that is not the config's, and what its parts can't do together."""
    for solver, names in (("bptt", _OF_ZO), ("zo", _OF_BPTT)):
        if config.solver != solver:
            continue
        for field in fields(TrainConfig):
            if field.name in names and getattr(config, field.name) != field.default:
                raise UsageError(f"{flag(field.name)} does not apply to --solver {solver}")
    if config.max_cosine_distance is not None and config.micro_batch_size is None:
        raise UsageError("--max-cosine-distance compares micro-batches: give --micro-batch-size too")


def _check_resumed(config: TrainConfig, stored: TrainConfig) -> None:
    """A resumed run has its own flags, but for a few that do not change its steps."""
    for field in fields(TrainConfig):
        if field.name not in FREE_ON_RESUME and getattr(config, field.name) != getattr(stored, field.name):
            raise UsageError(
                f"{flag(field.name)} is {getattr(stored, field.name)} in {config.resume}, whose run --resume continues "
                f"as it was: start another one from it with --fork {config.resume}"
            )


def _task_default(task: str) -> TrainConfig:
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    return DEFAULTS[task]


_DEFAULT_PARAMETERS = 21_000
"""About as many have the models that the tasks' learning rates were chosen for."""


def _with_preset(config: TrainConfig, name: str | None) -> TrainConfig:
    """The sizes of a preset, and a learning rate for them: it falls with the root of the number of parameters."""
    if name is None:
        return config
    _check_choice("preset", name, tuple(PRESETS))
    preset = PRESETS[name]
    return replace(
        config,
        preset=name,
        lr=float(f"{config.lr * math.sqrt(_DEFAULT_PARAMETERS / preset.parameters):.2g}"),
        model=preset.model,
        embed_dim=preset.embed_dim,
        hidden_size=preset.hidden_size,
        num_heads=preset.num_heads,
        memory_slots=preset.memory_slots,
        memory_width=preset.memory_width,
    )


def _without_lr(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--lr search`, of which tyro, who knows a number there, must not hear."""
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--lr" and rest[:1] == ["search"]:
            rest.pop(0)
        elif argument != "--lr=search":
            kept.append(argument)
    return kept
