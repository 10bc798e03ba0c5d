"""Opens, reads and writes files whole or not at all, through no symbolic link, and so that a power cut loses none."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

UNFINISHED = r"[0-9a-f]{1,8}"
"""Matches what follows `.NAME.` in the name of an unfinished file."""


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Opens an existing regular file and returns its descriptor. It never waits, as opening a pipe would.

    follow: whether the file may be a symbolic link. Raises OSError, whose `strerror` says if it is anything else.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is not a regular file", str(path)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_regular(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """Reads a regular file of at most `limit` bytes. Raises OSError as `open_regular` does, and if it is longer."""
    with open(open_regular(path, follow=follow), "rb") as file:
        data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if data is None or len(data) > limit:
        raise OSError(errno.EFBIG, f"it is longer than the {limit} bytes that such a file may have", str(path))
    return data


def read_text(path: Path, limit: int) -> str:
    """Reads a UTF-8 text as `read_regular` does. Raises ValueError too, if it is not UTF-8."""
    return read_regular(path, limit).decode()


def read_json(path: Path, limit: int) -> Any:
    """Reads a JSON file as `read_regular` does. Raises ValueError too, if it is not JSON."""
    try:
        return json.loads(read_text(path, limit))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that appears whole or not at all. When the call returns, a power cut can't undo it.

    write: writes the content to the path that it is given, that of an empty file beside the other.

    Raises what `write` raises, and OSError. An earlier file of that name is then unchanged. If the process is killed,
    a file `.NAME.` and up to 8 hexadecimal digits can be left.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    created = os.open(unfinished, flags, 0o666)
    try:
        mode = os.fstat(created).st_mode
        os.close(created)
        write(unfinished)
        written = open_regular(unfinished)
        try:
            if os.fstat(written).st_mode != mode:  # safetensors puts a file of mode 0600 in its place
                os.fchmod(written, stat.S_IMODE(mode))
            os.fsync(written)
        finally:
            os.close(written)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text as `write_atomically` does."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def append(descriptor: int, data: bytes) -> None:
    """Writes all of the data. Raises OSError if only a part could be written."""
    while data:
        data = data[os.write(descriptor, data) :]


def make_folders(path: Path) -> list[Path]:
    """Makes a folder and its missing parents. Returns those that it made, the outermost first.

    A power cut can't undo it. Raises OSError, and then removes what it made. A folder that is there stays as it is.
    """
    made: list[Path] = []
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    try:
        for folder in reversed(missing):
            try:
                folder.mkdir()
            except FileExistsError as error:
                if not folder.is_dir():  # and not made by another process in the meantime
                    if folder == path:
                        raise
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
            else:
                made.append(folder)
                sync_folder(folder.parent)
    except OSError:
        remove_folders(made)
        raise
    return made


def remove_folders(made: list[Path]) -> None:
    """Removes folders that `make_folders` made, as far as they are empty."""
    with suppress(OSError):
        for folder in reversed(made):
            folder.rmdir()


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power cut, as far as the file system can. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that can't sync folders say so
            raise
    finally:
        os.close(descriptor)
