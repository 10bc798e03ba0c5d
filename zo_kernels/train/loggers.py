"""Logs metrics to TensorBoard and Weights & Biases, in addition to the run folder's own file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ..run.files import read_text, write_text


class Logger(Protocol):
    """A destination of metrics. Its constructor raises ValueError if its package is not installed."""

    def start(self, config: Mapping[str, Any], folder: Path, step: int = 0) -> None:
        """Opens the log of a new run, or continues that of a resumed one.

        config: of the run. folder: the run's, in which the logger keeps its files. step: number of steps done. What was
        logged of later steps, before the run was interrupted, is dropped.

        Raises ValueError if the log can't be opened.
        """
        ...

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs the values of a step by name. None is left out."""
        ...

    def close(self) -> None:
        """Writes what is still buffered. Does nothing if the logger has not started."""
        ...


class TensorBoardLogger:
    """Writes event files to FOLDER/tensorboard: each metric as a scalar, and the config as text."""

    def __init__(self) -> None:
        self._package = _import_package("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def start(self, config: Mapping[str, Any], folder: Path, step: int = 0) -> None:
        """As `Logger.start`."""
        try:
            self._writer = self._package.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=10)
        except OSError as error:
            raise ValueError(f"can't log to {folder / 'tensorboard'}: {error.strerror}") from error
        if step == 0:
            self._writer.add_text("config", f"```\n{json.dumps(dict(config), indent=2, default=str)}\n```")

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """As `Logger.metrics`."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As `Logger.close`."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases: a run of the project `zo_kernels` with the name of the folder.

    wandb's environment variables apply: WANDB_MODE=offline sends nothing, and WANDB_PROJECT names another project. Its
    files are in FOLDER/wandb. The run's id is in FOLDER/wandb/id, so that a resumed run continues the same log even if
    its folder was moved.
    """

    def __init__(self) -> None:
        self._package = _import_package("wandb", "wandb")
        self._run: Any = None

    def start(self, config: Mapping[str, Any], folder: Path, step: int = 0) -> None:
        """As `Logger.start`. Later steps that were already sent stay: a resumed run repeats them exactly."""
        wandb = self._package
        try:
            settings = wandb.Settings(silent=True, console="off")  # the terminal is the trainer's
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "zo_kernels"),
                name=folder.resolve().name,
                id=_read_or_create_id(folder / "wandb" / "id"),
                dir=folder,
                config=json.loads(json.dumps(dict(config), default=str)),
                resume="allow",
                settings=settings,
            )
        except OSError as error:
            raise ValueError(f"can't log to {folder / 'wandb'}: {error.strerror}") from error
        except wandb.errors.Error as error:
            raise ValueError(f"wandb can't start, run `wandb login` or set WANDB_MODE=offline: {error}") from error

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """As `Logger.metrics`."""
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        """As `Logger.close`."""
        if self._run is not None:
            self._run.finish()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
"""Every logger by the name that `--log` takes."""


def _import_package(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"logging to {name} needs its package: pip install 'zo_kernels[log]'") from error


def _read_or_create_id(file: Path) -> str:
    """Returns the id in a file. If there is no such file, it is created with a new id."""
    with suppress(FileNotFoundError):
        return read_text(file, 1 << 10).strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(8)
    write_text(file, name + "\n")
    return name
