"""The folder that a run leaves behind."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import safetensors.torch
from torch import Tensor

from .config import TrainConfig, UsageError
from .plot import plot_losses

Metrics = Mapping[str, float | None]
"""One line of metrics.jsonl: `step`, and what was measured in or after that step."""


class RunFolder:
    """The files of one run: config.json, vocabulary.json, metrics.jsonl, weights.safetensors and loss.png.

    metrics.jsonl grows by a flushed line for each step; the other files appear whole or not at all.

    config: of the run. Its `out` names the folder, None means runs/TASK-DATE-TIME.
    symbols: the character of each token.

    Raises UsageError if the folder is not empty or can't be made.
    """

    path: Path

    def __init__(self, config: TrainConfig, symbols: Sequence[str]) -> None:
        try:
            self.path = _new_folder(config.task) if config.out is None else _empty_folder(config.out)
            self._metrics = (self.path / "metrics.jsonl").open("x", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"can't make the folder {error.filename}: {error.strerror}") from error
        as_json = json.dumps(asdict(config), indent=2, default=str)
        self._replace("config.json", lambda path: path.write_text(as_json + "\n", encoding="utf-8"))
        vocabulary = json.dumps(list(symbols))
        self._replace("vocabulary.json", lambda path: path.write_text(vocabulary + "\n", encoding="utf-8"))

    def add_metrics(self, metrics: Metrics) -> None:
        """Appends one line; a value that is not finite becomes null, for JSON has no number for it."""
        line = {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def metrics(self) -> list[Metrics]:
        """All lines so far."""
        with (self.path / "metrics.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def finish(self, weights: Mapping[str, Tensor], title: str, reference_losses: Mapping[str, float]) -> None:
        """Closes metrics.jsonl, saves the weights and plots the losses."""
        self._metrics.close()
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        self._replace("weights.safetensors", lambda path: safetensors.torch.save_file(tensors, path))
        shutil.copymode(self.path / "config.json", self.path / "weights.safetensors")  # safetensors makes it 0600
        self._replace("loss.png", lambda path: plot_losses(path, self.metrics(), title, reference_losses))

    def _replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file under another name and moves it into place, so that it is never seen half-written."""
        unfinished = self.path / f".{name}"
        write(unfinished)
        os.replace(unfinished, self.path / name)


def _empty_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise UsageError(f"the folder {path} is not empty: give --out a new one, nothing is ever overwritten")
    return path


def _new_folder(task: str) -> Path:
    """runs/TASK-DATE-TIME, with a number behind it if another run took that name in the same second."""
    name = f"{task}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
