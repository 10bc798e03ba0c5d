"""The config that a run's folder holds."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .config import TrainConfig, UsageError


def as_json(config: TrainConfig) -> str:
    """The text of config.json: every field."""
    return json.dumps(asdict(config), indent=2, default=str) + "\n"


def read_config(run: Path) -> TrainConfig:
    """The config of a run's folder. Raises UsageError if there is none, or it is that of another version."""
    path = run / "config.json"
    if not run.is_dir():
        raise UsageError(f"there is no run folder {run}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{run} is not the folder of a run: can't read {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error})") from error
    hints = typing.get_type_hints(TrainConfig)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise UsageError(f"{path} is not the config of a run, or of another version of zo_kernels")
    names = [field.name for field in fields(TrainConfig)]
    return TrainConfig(**{name: _restored(values[name], hints[name]) for name in names})


def _restored(value: Any, hint: Any) -> Any:
    """A value as it was before JSON, which knows neither paths nor tuples."""
    if value is None:
        return None
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if Path in options:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
