"""The folder of a run, with all files that the run writes and continues from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, UsageError
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .entries import JOURNAL, TOKENIZER, check_entries, is_half_made, lock_folder, remove_entries, remove_unfinished
from .files import append, make_folders, open_regular, remove_folders, sync_folder, write_atomically, write_text
from .journal import Journal
from .metrics import Metrics, as_line
from .tensors import save_tensors

VOCABULARY_LIMIT = 1 << 26
"""Bytes that vocabulary.json and tokenizer.json may have."""


class RunFolder:
    """An open run folder. It is a context manager that closes the folder, and only one process can have it open.

    The folder has config.json, arithmetic.json, journal.sqlite, checkpoints/, metrics.jsonl, weights.safetensors and
    loss.png; vocabulary.json if there are tokens; and tokenizer.json if a tokenizer makes them. A run continues from
    the journal and the checkpoints; metrics.jsonl repeats the journal as text. The journal and metrics.jsonl grow with
    each step; all other files are written whole or not at all.

    Use `create` or `open`, which raise UsageError if the folder can't be used, and JournalError.
    """

    path: Path
    journal: Journal

    def __init__(self, path: Path, lock: int, journal: Journal, made: list[Path] | None = None) -> None:
        self.path = path
        self.journal = journal
        self._lock = lock
        self._made = made
        self._metrics = -1

    @classmethod
    def create(
        cls,
        out: Path | None,
        config: str,
        symbols: Sequence[str] | None,
        *,
        tokenizer: str | None = None,
        name: str = "run",
        first_step: int = 0,
        patience: float = 0.0,
    ) -> RunFolder:
        """Creates the folder `out`, or runs/NAME-DATE-TIME if `out` is None. After an error, nothing is left of it.

        config: text of config.json. symbols: the string of each token; None if there are none. tokenizer: text of
            tokenizer.json, if there is one. first_step: as for `Journal.create`. patience: as for `open`.
        """
        made: list[Path] = []
        lock, is_ours = -1, False
        try:
            path, made = _new_folder(name) if out is None else (out, make_folders(out))
            lock = lock_folder(path, patience)
            _check_empty(path)
            is_ours = True
            return cls._create(path, lock, made, config, symbols, tokenizer, first_step)
        except BaseException as error:
            if is_ours:
                with suppress(OSError):
                    remove_entries(path)
            remove_folders(made)
            if lock >= 0:
                os.close(lock)
            if isinstance(error, OSError):
                raise UsageError(f"can't make the folder {out or 'runs'}: {error.strerror}") from error
            raise

    @classmethod
    def _create(
        cls,
        path: Path,
        lock: int,
        made: list[Path],
        config: str,
        symbols: Sequence[str] | None,
        tokenizer: str | None,
        first_step: int,
    ) -> RunFolder:
        sync_folder(path.parent)  # `out` may have been made a moment ago
        make_folders(path / "checkpoints")
        if symbols is not None:
            write_text(path / "vocabulary.json", _as_json(symbols))
        if tokenizer is not None:
            write_text(path / TOKENIZER, tokenizer)
        digest = config_digest(config)
        folder = cls(path, lock, Journal.create(path / JOURNAL, first_step=first_step, digest=digest), made)
        try:
            folder.journal.sync()
            write_text(path / "config.json", config)  # last: without it the folder is that of no run
            folder.begin_metrics([])
        except BaseException:
            folder._close_files()
            raise
        return folder

    @classmethod
    def open(cls, path: Path, *, patience: float = 0.0) -> RunFolder:
        """Opens the folder of a run to continue it. patience: seconds to wait while another process has it open."""
        lock = lock_folder(path, patience)
        try:
            check_entries(path)
            remove_unfinished(path)
            return cls(path, lock, Journal.open(path / JOURNAL))
        except OSError as error:
            os.close(lock)
            raise UsageError(f"can't use {error.filename or path}: {error.strerror}") from error
        except BaseException:
            os.close(lock)
            raise

    def begin_metrics(self, lines: Iterable[Metrics]) -> None:
        """Replaces metrics.jsonl by these lines and opens it for more. Raises OSError."""
        path = self.path / "metrics.jsonl"
        write_text(path, "".join(map(as_line, lines)))
        self._close_metrics()
        self._metrics = open_regular(path, os.O_WRONLY | os.O_APPEND)

    def add_metrics(self, metrics: Metrics) -> None:
        """Appends the line of a step to metrics.jsonl, after `begin_metrics`. Raises OSError."""
        append(self._metrics, as_line(metrics).encode())

    def save_checkpoint(
        self, step: int, model: Mapping[str, Tensor], solver: Any, *, keep: int, best: int | None = None
    ) -> None:
        """Writes a checkpoint, then removes all but the first, the `keep` newest, and that of the step `best`.

        The journal is on the disk before the checkpoint is, so that no power cut leaves a checkpoint without its rows.
        """
        self.journal.sync()
        journal, run = self.journal.digest_before(step), self.journal.digest_before(self.journal.first_step)
        save_checkpoint(checkpoint_path(self.path, step), Checkpoint(step, model, solver, journal, run))
        for old in checkpoint_steps(self.path)[1:-keep]:
            if old != best:
                checkpoint_path(self.path, old).unlink()

    def finish(
        self, weights: Mapping[str, Tensor], symbols: Sequence[str] | None, draw: Callable[[Path], object]
    ) -> None:
        """Saves the weights, and the plot that `draw` writes to a path. Raises CheckpointError and JournalError.

        symbols: as for `create`. Their digest, if any, is saved with the weights.
        """
        self.journal.sync()
        companion = "" if symbols is None else vocabulary_digest(symbols)
        save_tensors(self.path / "weights.safetensors", weights, companion=companion)
        try:
            if self._metrics >= 0:
                os.fsync(self._metrics)
            write_atomically(self.path / "loss.png", draw)
        except OSError as error:
            raise CheckpointError(f"can't write {self.path / 'loss.png'}: {error.strerror}") from error

    def discard(self) -> None:
        """Closes the folder, and removes it if it was created and has no step yet."""
        if self._made is None or self.journal.next_step != self.journal.first_step:
            self.close()
            return
        self._close_files()
        with suppress(OSError):
            remove_entries(self.path)
        remove_folders(self._made)
        self.close()

    def close(self) -> None:
        """Closes the files and unlocks the folder. Further calls do nothing."""
        try:
            self._close_files()
        finally:
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _close_files(self) -> None:
        self._close_metrics()
        self.journal.close()

    def _close_metrics(self) -> None:
        if self._metrics >= 0:
            with suppress(OSError):  # nothing is buffered, and the journal has it all
                os.close(self._metrics)
            self._metrics = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checkpoint_path(run: Path, step: int) -> Path:
    """Path of a run's checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:09d}.safetensors"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, in increasing order. Raises CheckpointError if they can't be listed."""
    folder = run / "checkpoints"
    if folder.is_symlink():
        raise CheckpointError(f"{folder} must be a folder of its own, not a symbolic link: put the folder there")
    try:
        names = re.findall(r"^step-(\d{9,})\.safetensors$", "\n".join(os.listdir(folder)), re.MULTILINE)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"can't read {folder}: {error.strerror}") from error
    return sorted(map(int, names))


def find_checkpoint(run: Path, journal: Journal, step: int, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest usable checkpoint of this journal up to `step`; None if there are no checkpoints.

    Calls `warn` with a message for each damaged or foreign checkpoint. Raises CheckpointError if none is usable.
    """
    steps = [s for s in checkpoint_steps(run) if s <= step]
    for number in reversed(steps):
        try:
            return own_checkpoint(run, journal, number)
        except CheckpointError as error:
            warn(f"{error}; going back to an earlier one")
    if steps:
        raise CheckpointError(f"no checkpoint in {run / 'checkpoints'} is whole: start a new run, this one can't go on")
    return None


def own_checkpoint(run: Path, journal: Journal, step: int) -> Checkpoint:
    """Reads the checkpoint of a step. Raises CheckpointError if it is damaged or not one of this journal.

    If the rows before it are missing from the journal, it is known by the config of its run.
    """
    path = checkpoint_path(run, step)
    found = load_checkpoint(path)
    if journal.knows(step):
        is_own = found.journal == journal.digest_before(step)
    else:
        is_own = found.run == journal.digest_before(journal.first_step)
    if found.step != step or not is_own:
        raise CheckpointError(f"{path} is a checkpoint of another run")
    return found


def config_digest(config: str) -> bytes:
    """Digest of the text of config.json. A journal begins with it, since its rows are valid only for that config."""
    return hashlib.blake2b(config.encode(), digest_size=8).digest()


def vocabulary_digest(symbols: Sequence[str]) -> str:
    """Digest of vocabulary.json, in hexadecimal, which is saved with the weights."""
    return hashlib.blake2b(_as_json(symbols).encode(), digest_size=16).hexdigest()


def _as_json(symbols: Sequence[str]) -> str:
    return json.dumps(list(symbols)) + "\n"


def _check_empty(path: Path) -> None:
    """Raises UsageError if a folder is not empty. What is left of a run that was never made is removed."""
    if is_half_made(path):
        remove_entries(path)
    if any(path.iterdir()):
        raise UsageError(f"the folder {path} is not empty, and runs are never overwritten: give --out a new folder")


def _new_folder(name: str) -> tuple[Path, list[Path]]:
    """Makes runs/NAME-DATE-TIME, with a number appended if the name was taken in the same second."""
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        made = make_folders(path)
        if path in made:
            return path, made
        number += 1
