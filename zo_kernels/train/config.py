"""The configuration of a run, and how it is stored."""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import UsageError
from ..extensions import is_import
from ..run.config import CONFIG_LIMIT, as_text, read_values
from ..run.files import read_text
from ..tasks import find_task
from ..transforms.registry import imported_name
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig(  # dataclasses collects fields from the last base to the first
    ProcessOptions, FileOptions, ProbeOptions, SolverOptions, ModelOptions, DataOptions, TaskOptions, RunOptions
):
    """Configures a training run. It has one field for each flag of `python -m zo_kernels.train`.

    `default_config` gives the defaults of a task. Values are checked when the run starts. Paths may be given as text,
    and `log` as a list.

    A config is plain data, since a run is resumed from the JSON in its folder: estimators, transforms and dense rules
    are given by name. Your own are named package.module:Class, or get a name by a line such as
    `zo_kernels.estimators.ESTIMATORS["mine"] = MyEstimator`.
    """

    def __post_init__(self) -> None:
        for name in _PATHS:
            if isinstance(value := getattr(self, name), (str, os.PathLike)):
                object.__setattr__(self, name, Path(value))
        if isinstance(self.log, list):
            object.__setattr__(self, "log", tuple(self.log))


FIELD_TYPES = get_type_hints(TrainConfig)
"""The type of each field."""

_PATHS = tuple(name for name, hint in FIELD_TYPES.items() if Path in get_args(hint))

TASK_OPTIONS = tuple(field.name for field in (*fields(TaskOptions), *fields(DataOptions)) if field.name != "task")
"""Fields that apply to some tasks only."""

FREE_ON_RESUME = (
    *("resume", "device", "threads", "backend", "eval_batch_size", "allow_other_arithmetic", "allow_import"),
    *("checkpoint_every", "keep_checkpoints", "log", "stop_on_divergence", "patience"),
    *(field.name for field in fields(ProcessOptions)),
)
"""Fields that may change when a run is resumed, for they do not change what its steps compute.

With another device or backend, losses would be rounded differently: `zo_kernels.train.arithmetic` refuses that unless
`allow_other_arithmetic` is set. Otherwise a resumed run has the bits of one that never stopped.
"""


def activity_probes(config: TrainConfig) -> int:
    """Returns the number of probes of activity perturbation: 0 if a local gradient is all that is left to estimate."""
    return 0 if config.local_gradient and config.credit_length == 1 else config.probes


def task_options(config: TrainConfig) -> dict[str, Any]:
    """Returns the arguments of the constructor of the config's task. Each is named like its field."""
    return {name: getattr(config, name) for name in task_parameters(config.task)}


def task_parameters(task: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a task's constructor that are fields of the config.

    Raises ValueError if there is no such task, or its constructor needs others.
    """
    found = inspect.signature(find_task(task)).parameters
    for name, parameter in found.items():
        is_optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if name not in FIELD_TYPES and not is_optional:
            raise ValueError(f"the task {task} needs {name}, which is no flag: give it a default value")
    return {name: parameter for name, parameter in found.items() if name in FIELD_TYPES}


def imports_of(config: TrainConfig) -> list[str]:
    """Returns the names in a config for which code outside the package would be imported."""
    names = [name for name in (config.task, config.model, config.estimator) if is_import(name)]
    return names + [name for item in config.transforms.split(",") if (name := imported_name(item)) is not None]


def as_json(config: TrainConfig) -> str:
    """Returns the text of config.json, which has every field."""
    return as_text(asdict(config))


def read_config(run: Path) -> TrainConfig:
    """Reads the config of a run's folder.

    Raises UsageError if there is no such folder, or its config.json can't be read or has other fields.
    """
    path = run / "config.json"
    if not os.path.isdir(run):  # False for a name too long, too
        raise UsageError(f"there is no run folder {run}")
    try:
        text = read_text(path, CONFIG_LIMIT)
    except OSError as error:
        raise UsageError(f"{run} is not the folder of a run: can't read {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error})") from error
    return from_json(text, str(path))


def from_json(text: str, name: str) -> TrainConfig:
    """Reads what `as_json` has written. name: what the text is called in errors.

    Raises UsageError if it has other fields, or values of other types.
    """
    values = read_values(text, name)
    if "loop" in values:
        raise UsageError(f"{name} is that of a training loop in a script: to continue the run, start the script again")
    if values.keys() != FIELD_TYPES.keys():
        raise UsageError(f"{name} is not the config of a run, or of another version of zo_kernels")
    try:
        config = TrainConfig(**values)
        check_types(config)
    except (TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{name} is not the config of a run: {error}") from error
    return config


def check_types(config: TrainConfig) -> None:
    """Raises UsageError if a value has another type than its field."""
    for name in FIELD_TYPES:
        check_type(name, getattr(config, name))


def check_type(name: str, value: Any) -> None:
    """Raises UsageError if a value has another type than the field of this name."""
    kind = FIELD_TYPES[name]
    kinds = tuple(each for each in get_args(kind) if get_origin(kind) is not tuple) or (get_origin(kind) or kind,)
    if float in kinds:
        kinds = (*kinds, int)
    is_bad = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if is_bad or (isinstance(value, tuple) and not all(isinstance(each, str) for each in value)):
        wanted = " or ".join("None" if each is type(None) else each.__name__ for each in kinds)
        hint = " (a run is stored as text: give a name)" if str in kinds else ""
        raise UsageError(f"{name} must be of type {wanted}, not {repr(value)[:100]}{hint}")
