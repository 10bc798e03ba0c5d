"""From command-line arguments to a checked config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from .check import check
from .config import TrainConfig
from .defaults import base_config
from .options import (
    DataOptions,
    FileOptions,
    ModelOptions,
    ProbeOptions,
    ProcessOptions,
    RunOptions,
    SolverOptions,
    TaskOptions,
)

PROGRAM = "python -m zo_kernels.train"

_Options = TypeVar("_Options")


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """Train a recurrent network from forward passes alone, by CD-RGE.

    Defaults depend on the task: --task TASK --help shows those of TASK.
    """

    run: RunOptions
    task: TaskOptions
    data: DataOptions
    model: ModelOptions
    solver: SolverOptions
    probe: ProbeOptions
    file: FileOptions
    process: ProcessOptions


def parse(arguments: Sequence[str], *, silent: bool = False) -> TrainConfig:
    """Returns the config that command-line arguments ask for.

    Prints help or a parse error, unless silent, and exits. Raises UsageError if there is no such task, preset or run,
    and as `check` does.
    """
    # These are read first, for the defaults of all other flags depend on them.
    early = argparse.ArgumentParser(PROGRAM, add_help=False, allow_abbrev=False)
    early.add_argument("--task")
    early.add_argument("--model")
    early.add_argument("--preset")
    early.add_argument("--resume", type=Path)
    early.add_argument("--fork", type=Path)
    early.add_argument("--lr")
    given = early.parse_known_args(arguments)[0]
    searches = given.lr == "search"
    if searches:
        arguments = _without_lr(arguments)
    default = _grouped(base_config(given.task, given.model, given.preset, given.resume, given.fork))
    groups = tyro.cli(
        tyro.conf.OmitArgPrefixes[_Groups], prog=PROGRAM, default=default, args=arguments, console_outputs=not silent
    )
    config = _flat(groups)
    if searches:
        config = replace(config, lr_search=True)
    check(config)
    return config


def _grouped(config: TrainConfig) -> _Groups:
    def part(options: type[_Options]) -> _Options:
        return options(**{field.name: getattr(config, field.name) for field in fields(options)})  # type: ignore[arg-type]

    return _Groups(
        run=part(RunOptions),
        task=part(TaskOptions),
        data=part(DataOptions),
        model=part(ModelOptions),
        solver=part(SolverOptions),
        probe=part(ProbeOptions),
        file=part(FileOptions),
        process=part(ProcessOptions),
    )


def _flat(groups: _Groups) -> TrainConfig:
    values: dict[str, Any] = {}
    for group in asdict(groups).values():
        values.update(group)
    return TrainConfig(**values)


def _without_lr(arguments: Sequence[str]) -> list[str]:
    """Removes `--lr search`, for tyro expects a number after --lr."""
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--lr" and rest[:1] == ["search"]:
            rest.pop(0)
        elif argument != "--lr=search":
            kept.append(argument)
    return kept
