"""The secret that the processes of a launch have in common, by which they know each other's words."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from ..errors import ProcessGroupError

VARIABLE = "ZO_KERNELS_SECRET"

_SHORTEST = 16
"""Characters of a secret that the user chooses."""


def find_secret() -> bytes:
    """Returns the text of ZO_KERNELS_SECRET, or else what a file holds that only this user can read.

    The file is made by the first process that needs it. It is in the user's folder for state, and all processes that
    see that folder share it: those of one node, and those of several nodes if they have the home folder in common.

    Raises ProcessGroupError if the secret is too short, or if the file can be read by others or can't be made.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if len(given) < _SHORTEST:
            raise ProcessGroupError(
                f"{VARIABLE} has {len(given)} characters: give it at least {_SHORTEST} that nobody can guess, the same "
                "on all nodes"
            )
        return given.encode(errors="surrogateescape")
    problem = ""
    for path in _candidates():
        try:
            return _read_or_make(path)
        except OSError as error:
            problem = problem or f"{path}: {error.strerror}"
    raise ProcessGroupError(f"no secret can be kept for the processes ({problem}): set {VARIABLE} for all of them")


def _candidates() -> list[Path]:
    """Where the file may be, from the first choice on. Nothing depends on who made these folders."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~")) / ".local" / "state"
    found = [home / "zo_kernels" / "secret"] if home.is_absolute() else []
    return [*found, Path(tempfile.gettempdir()) / f"zo_kernels-{os.geteuid()}" / "secret"]


def _read_or_make(path: Path) -> bytes:
    """Raises OSError if the file can't be made, and ProcessGroupError for one that is no secret."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The checks are made on what was opened, and nobody else can make a file that belongs to this user.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ProcessGroupError(
                f"{path} must be a file that this user owns and nobody else can read: remove it, or set {VARIABLE}"
            )
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # other processes may be about to fill it
        text = os.read(descriptor, 100)
        if not text:  # it is new, or its maker was killed
            text = secrets.token_hex(32).encode()
            os.write(descriptor, text)
            os.fsync(descriptor)
        if not re.fullmatch(rb"[0-9a-f]{64}", text):
            raise ProcessGroupError(f"{path} does not hold a secret of zo_kernels: remove it, or set {VARIABLE}")
        return text
    finally:
        os.close(descriptor)
