"""The folder of a run, with all files that the run writes and continues from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from ..errors import CheckpointError, UsageError
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from .journal import Journal, Row, Scores

Metrics = Mapping[str, float | None]
"""One line of metrics.jsonl: `step`, and the values measured in or after that step."""

JOURNAL = "journal.sqlite"

_REPLACED = ("config.json", "vocabulary.json", "arithmetic.json", "metrics.jsonl", "loss.png")
"""Files that are written under another name, with a dot before it, and then renamed."""


class RunFolder:
    """An open run folder. It is a context manager that closes the folder, and only one process can have it open.

    The folder has config.json, vocabulary.json, arithmetic.json, journal.sqlite, checkpoints/, metrics.jsonl,
    weights.safetensors and loss.png. A run continues from the journal and the checkpoints; metrics.jsonl repeats the
    journal as text. The journal and metrics.jsonl grow with each step; all other files are written whole or not at all.

    Use `create` or `open`, which raise UsageError if the folder can't be used.
    """

    path: Path
    journal: Journal

    def __init__(self, path: Path, lock: int, journal: Journal) -> None:
        self.path = path
        self.journal = journal
        self._lock = lock
        self._metrics: TextIO | None = None

    @classmethod
    def create(
        cls, out: Path | None, config: str, symbols: Sequence[str], *, name: str = "run", first_step: int = 0
    ) -> RunFolder:
        """Creates the folder `out`, or runs/NAME-DATE-TIME if `out` is None.

        config: text of config.json. symbols: the string of each token. first_step: as for `Journal.create`.
        """
        try:
            path = _new_folder(name) if out is None else _empty_folder(out)
            (path / "checkpoints").mkdir()
            write_text(path / "config.json", config)
            write_text(path / "vocabulary.json", json.dumps(list(symbols)) + "\n")
        except OSError as error:
            raise UsageError(f"can't make the folder {error.filename}: {error.strerror}") from error
        digest = config_digest(config)
        folder = cls._with_lock(path, lambda: Journal.create(path / JOURNAL, first_step=first_step, digest=digest))
        folder.begin_metrics([])
        return folder

    @classmethod
    def open(cls, path: Path, *, patience: float = 0.0) -> RunFolder:
        """Opens the folder of a run to continue it. patience: seconds to wait while another process has it open."""
        folder = cls._with_lock(path, lambda: Journal.open(path / JOURNAL), patience)
        _remove_unfinished(path)
        return folder

    @classmethod
    def _with_lock(cls, path: Path, open_journal: Callable[[], Journal], patience: float = 0.0) -> RunFolder:
        lock = _lock_folder(path, patience)
        try:
            return cls(path, lock, open_journal())
        except BaseException:
            os.close(lock)
            raise

    def begin_metrics(self, lines: Iterable[Metrics]) -> None:
        """Replaces metrics.jsonl by these lines and opens it for more."""
        path = self.path / "metrics.jsonl"
        write_text(path, "".join(map(_as_line, lines)))
        self._metrics = path.open("a", encoding="utf-8")

    def add_metrics(self, row: Row, scores: Scores, forwards: int) -> Metrics:
        """Appends the line of a step to metrics.jsonl, after `begin_metrics`, and returns it.

        A value that is not finite becomes null, since JSON has no number for it.
        """
        assert self._metrics is not None
        metrics = metrics_of(row, scores, forwards)
        self._metrics.write(_as_line(metrics))
        self._metrics.flush()
        return metrics

    def save_checkpoint(self, step: int, model: Mapping[str, Tensor], solver: Any, *, keep: int) -> None:
        """Writes a checkpoint, then removes all but the first and the `keep` newest."""
        digest = self.journal.digest_before(step)
        save_checkpoint(checkpoint_path(self.path, step), Checkpoint(step, model, solver, digest))
        for old in checkpoint_steps(self.path)[1:-keep]:
            checkpoint_path(self.path, old).unlink()

    def finish(self, weights: Mapping[str, Tensor], draw: Callable[[Path], object]) -> None:
        """Saves the weights, and the plot that `draw` writes to a path. Raises CheckpointError."""
        write_atomically(self.path / "weights.safetensors", weights)
        try:
            _replace(self.path / "loss.png", draw)
        except OSError as error:
            raise CheckpointError(f"can't write {self.path / 'loss.png'}: {error.strerror}") from error

    def discard(self) -> None:
        """Removes the folder with all that is in it, and closes it."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.path)
        self.close()

    def close(self) -> None:
        """Closes the files and unlocks the folder. Further calls do nothing."""
        self.journal.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checkpoint_path(run: Path, step: int) -> Path:
    """Path of a run's checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:09d}.safetensors"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, in increasing order."""
    names = [path.stem.removeprefix("step-") for path in (run / "checkpoints").glob("step-*.safetensors")]
    return sorted(int(name) for name in names if name.isdecimal())


def find_checkpoint(run: Path, journal: Journal, step: int, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest usable checkpoint of this journal up to `step`; None if there are no checkpoints.

    Calls `warn` with a message for each damaged or foreign checkpoint. Raises CheckpointError if none is usable.
    """
    steps = [s for s in checkpoint_steps(run) if s <= step]
    for number in reversed(steps):
        try:
            found = load_checkpoint(checkpoint_path(run, number))
            if found.step != number or found.journal != journal.digest_before(number):
                raise CheckpointError(f"{checkpoint_path(run, number)} is a checkpoint of another run")
            return found
        except CheckpointError as error:
            warn(f"{error}; going back to an earlier one")
    if steps:
        raise CheckpointError(f"no checkpoint in {run / 'checkpoints'} is whole: start a new run, this one can't go on")
    return None


def config_digest(config: str) -> bytes:
    """Digest of the text of config.json. A journal begins with it, since its rows are valid only for that config."""
    return hashlib.blake2b(config.encode(), digest_size=8).digest()


def metrics_of(row: Row, scores: Scores, forwards: int) -> dict[str, float]:
    """The line of metrics.jsonl for a journal row. scores: validation scores after the step; may be empty."""
    done = row.step + 1
    return {
        "step": done,
        "train_loss": row.loss,
        "lr": row.lr,
        "skipped_probes": sum(map(math.isnan, row.coeffs.tolist())),
        "seconds": row.seconds,
        "forwards": done * forwards,
        **named_scores(scores),
    }


def named_scores(scores: Scores) -> dict[str, float]:
    """NAME_loss, in nats per token, and NAME_accuracy of each set as metrics."""
    metrics = {}
    for name, (loss, accuracy) in scores.items():
        metrics[f"{name}_loss"] = loss
        metrics[f"{name}_accuracy"] = accuracy
    return metrics


def metrics_from_journal(journal: Journal, forwards: int) -> Iterator[Metrics]:
    """All lines of metrics.jsonl, rebuilt from the journal."""
    if beginning := journal.scores(journal.first_step):
        yield {"step": journal.first_step, **named_scores(beginning)}
    for row in journal.rows():
        yield metrics_of(row, journal.scores(row.step + 1), forwards)


def _as_line(metrics: Metrics) -> str:
    return json.dumps({k: v if v is not None and math.isfinite(v) else None for k, v in metrics.items()}) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically. Raises OSError."""
    _replace(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    unfinished = path.with_name(f".{path.name}")
    write(unfinished)
    os.replace(unfinished, path)


def _remove_unfinished(path: Path) -> None:
    """Removes what a killed process was writing when it died. The folder must be locked."""
    for name in _REPLACED:
        (path / f".{name}").unlink(missing_ok=True)
    for unfinished in (*path.glob(".weights.safetensors.*"), *path.glob("checkpoints/.step-*.safetensors.*")):
        unfinished.unlink(missing_ok=True)


def _lock_folder(path: Path, patience: float) -> int:
    """Locks the folder and returns its descriptor. The lock ends when that is closed or the process dies."""
    descriptor = os.open(path, os.O_RDONLY)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise UsageError(f"another process is training in {path}: wait until it ends") from error
        time.sleep(0.1)


def _empty_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise UsageError(f"the folder {path} is not empty, and runs are never overwritten: give --out a new folder")
    return path


def _new_folder(name: str) -> Path:
    """Creates runs/NAME-DATE-TIME, with a number appended if the name was taken in the same second."""
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
