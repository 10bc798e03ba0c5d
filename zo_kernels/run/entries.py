"""What may lie in the folder of a run: its files, what a killed process left of them, and a lock on the folder."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

from ..errors import UsageError
from .files import UNFINISHED

JOURNAL = "journal.sqlite"
TOKENIZER = "tokenizer.json"

_CONFIG = "config.json"  # made last: without it there is no run yet
_MADE_BEFORE = ("vocabulary.json", TOKENIZER, *(JOURNAL + suffix for suffix in ("", "-wal", "-shm", "-journal")))
_MADE_AFTER = ("arithmetic.json", "metrics.jsonl", "lr_search.json", "weights.safetensors", "loss.png")
_LOGS = ("tensorboard", "wandb")

_WRITTEN = "|".join(map(re.escape, (_CONFIG, *_MADE_BEFORE[:3], *_MADE_AFTER))) + r"|step-\d{9,}\.safetensors"
_UNFINISHED = re.compile(rf"\.({_WRITTEN})(\.{UNFINISHED})?|\.tmp[0-9A-Za-z]{{6}}")
"""Names of unfinished files: those of `write_atomically`, of safetensors, and of version 0.1, which had no suffix."""


def check_entries(run: Path) -> None:
    """Raises UsageError if anything but a regular file has the name of a file of the run, or if a folder is a link."""
    for names, is_right, kind in (
        ((_CONFIG, *_MADE_BEFORE, *_MADE_AFTER), stat.S_ISREG, "file"),
        (("checkpoints", *_LOGS), stat.S_ISDIR, "folder"),
    ):
        for name in names:
            with suppress(FileNotFoundError):
                mode = (run / name).lstat().st_mode
                if not is_right(mode):
                    found = "a symbolic link" if stat.S_ISLNK(mode) else "something else"
                    raise UsageError(f"{run / name} must be a {kind} of its own, not {found}: put the {kind} there")


def is_half_made(run: Path) -> bool:
    """Whether the folder has nothing but what a process leaves that dies while it makes a run: no config.json yet."""
    checkpoints = run / "checkpoints"
    if checkpoints.is_symlink() or not checkpoints.is_dir() or any(checkpoints.iterdir()):
        return False
    others = [entry for entry in os.scandir(run) if entry.name != "checkpoints"]
    return all(
        entry.is_file(follow_symlinks=False) and (entry.name in _MADE_BEFORE or _UNFINISHED.fullmatch(entry.name))
        for entry in others
    )


def remove_entries(run: Path) -> None:
    """Removes all that a run makes, config.json first. Raises OSError."""
    remove_unfinished(run)
    for name in (_CONFIG, *_MADE_BEFORE, *_MADE_AFTER):
        (run / name).unlink(missing_ok=True)
    for name in ("checkpoints", *_LOGS):
        with suppress(FileNotFoundError):
            shutil.rmtree(run / name)


def remove_unfinished(run: Path) -> None:
    """Removes the files that a killed process had not finished. The folder must be locked. Raises OSError."""
    for folder in (run, run / "checkpoints"):
        with suppress(FileNotFoundError):
            for entry in os.scandir(folder):
                if _UNFINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


def lock_folder(path: Path, patience: float = 0.0) -> int:
    """Locks a folder and returns its descriptor. The lock ends when that is closed or the process dies.

    patience: seconds to wait while another process holds the lock. Raises UsageError if the folder can't be locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"can't open the folder {path}: {error.strerror}") from error
    until = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise UsageError(f"another process is training in {path}: wait until it ends") from error
            except OSError as error:
                raise UsageError(
                    f"the file system of {path} can't lock a folder ({error.strerror}), and without a lock two "
                    "processes could train in it at once: use a folder on a local disk"
                ) from error
            time.sleep(0.1)
    except BaseException:
        os.close(descriptor)
        raise
