"""Where metrics may go besides the run folder's own file: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """A destination of metrics. Building one raises ValueError if its package is not installed."""

    def start(self, config: Mapping[str, Any], folder: Path, step: int = 0) -> None:
        """Opens the log of a run, or goes on with that of a resumed one.

        config: of the run. folder: the run's; what the logger keeps on disk lies in it. step: steps done so far; what
        was logged of later ones before the run was interrupted counts no more.

        Raises ValueError if the log can't be opened.
        """
        ...

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs the values of a step by name; None is left out."""
        ...

    def close(self) -> None:
        """Writes what is still held back. Does nothing if the logger has not started."""
        ...


class TensorBoardLogger:
    """Event files in FOLDER/tensorboard: a scalar for each metric, the config as text."""

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
    """A run of the project `zo_kernels` on Weights & Biases, named like the folder; its files are in FOLDER/wandb.

    wandb's environment variables hold: WANDB_MODE=offline sends nothing, WANDB_PROJECT is another project. The run's id
    is kept in FOLDER/wandb/id, so that a resumed run goes on in the same place wherever the folder is by then.
    """

    def __init__(self) -> None:
        self._package = _import_package("wandb", "wandb")
        self._run: Any = None

    def start(self, config: Mapping[str, Any], folder: Path, step: int = 0) -> None:
        """As `Logger.start`. Steps that were already sent stay: wandb refuses earlier ones, and they repeat exactly."""
        wandb = self._package
        try:
            settings = wandb.Settings(silent=True, console="off")  # the trainer's own lines go to the terminal as ever
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
"""Every logger by its name on the command line."""


def _import_package(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"logging to {name} needs its package: pip install 'zo_kernels[log]'") from error


def _read_or_create_id(file: Path) -> str:
    """The id in a file, which is made with a new one if there is none."""
    if file.exists():
        return file.read_text(encoding="utf-8").strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(8)
    file.write_text(name + "\n", encoding="utf-8")
    return name
