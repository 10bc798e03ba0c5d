"""The SQLite file of a journal: how it is created, opened and synced, and which files are refused."""

from __future__ import annotations

import functools
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import JournalError
from .files import open_regular, sync_folder, write_atomically

VERSION = 2
"""Version of the tables that are written. Those of version 1 are read, and turned into these by the first write."""

TABLES: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE TABLE beginning (step INTEGER NOT NULL, digest BLOB NOT NULL)",
        """CREATE TABLE steps (
    step INTEGER PRIMARY KEY, lr REAL NOT NULL, eps REAL NOT NULL, seed INTEGER NOT NULL, coeffs BLOB NOT NULL,
    loss REAL, seconds REAL NOT NULL, digest BLOB NOT NULL
)""",
        """CREATE TABLE scores (
    step INTEGER NOT NULL, name TEXT NOT NULL, loss REAL, accuracy REAL, PRIMARY KEY (step, name)
)""",
    )
}
TABLES[2] = (
    "CREATE TABLE beginnings (step INTEGER PRIMARY KEY, missing_from INTEGER NOT NULL, digest BLOB, checksum BLOB)",
    TABLES[1][1],
    """CREATE TABLE scores (
    number INTEGER PRIMARY KEY, step INTEGER NOT NULL, name TEXT NOT NULL, loss REAL, accuracy REAL, digest BLOB
)""",
    "CREATE TABLE extent (step INTEGER, digest BLOB, scores INTEGER, scores_digest BLOB, checksum BLOB)",
)
"""Statements that make the tables of each version. A file whose tables differ in a letter is not opened."""

GROUPS = "CREATE TABLE groups (step INTEGER PRIMARY KEY, numbers BLOB NOT NULL)"
"""One more table, in a journal with rows that have groups. The digest of a row covers its groups."""

_APPLICATION_ID = 0x7A6F6B31  # "zok1"
_MOST_BYTES = 1 << 28
"""Size limit of one value, such as the coefficients of a step."""
_BESIDE = ("", "-wal", "-shm", "-journal")
"""What SQLite appends to the name of a database for the files beside it."""
_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What the module sqlite3 raises. It can't decode a message of SQLite that quotes damaged text."""
_WAL_HEADER, _FRAME_HEADER = 32, 24
_FRAMES_AT_ONCE = 256


def create_file(path: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Creates a journal with the rows that `fill` inserts. It appears whole or not at all, and survives a power cut.

    Raises JournalError if it can't be created, or if there is a file of that name.
    """

    def write(unfinished: Path) -> None:
        with closing(_connect(unfinished, "mode=rw")) as connection, JournalErrors(path):
            connection.execute("PRAGMA journal_mode = MEMORY")  # no file beside it under this name
            connection.execute("BEGIN")
            make_tables(connection)
            fill(connection)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute("COMMIT")

    if os.path.lexists(path):
        raise JournalError(f"the journal {path} can't be created: there is a file of that name")
    try:
        write_atomically(path, write)
    except OSError as error:
        raise JournalError(f"the journal {path} can't be created: {error.strerror}") from error


def make_tables(connection: sqlite3.Connection, *, but: str = "") -> None:
    """Makes the tables of the version that is written, except the one named `but`."""
    for statement in TABLES[VERSION]:
        if statement.split()[2] != but:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def has_groups(connection: sqlite3.Connection) -> bool:
    """Whether the journal has a table of groups."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'groups'").fetchone() is not None


def open_file(path: Path, *, writable: bool) -> tuple[sqlite3.Connection, int]:
    """Opens a journal. Returns the connection, which reads text as bytes, and the version of the tables.

    Reading a journal that nobody writes leaves nothing in its folder, which need not be writable.

    Raises JournalError if there is no such journal, or if it has other tables, or if a file beside it is a link, a
    folder or a device.
    """
    _refuse_links(path)
    settled = not writable and _is_settled(path)
    try:
        connection = _connect(path, "mode=rw" if writable else "mode=ro&immutable=1" if settled else "mode=ro")
        try:
            with JournalErrors(path):
                version = _version(path, connection)
                if writable:
                    connection.execute("PRAGMA journal_mode = WAL")
                return connection, version
        except BaseException:
            connection.close()
            raise
    except JournalError as error:
        if isinstance(error.__cause__, sqlite3.OperationalError) and not os.access(path.parent, os.W_OK):
            where = f"here, where its folder can't be written ({_reason(error.__cause__)})"
            raise JournalError(f"the journal {path} can't be read {where}: copy the folder to another place") from error
        raise


def sync_file(path: Path, connection: sqlite3.Connection) -> None:
    """Makes all that was written survive a power cut, and empties the WAL file. Raises JournalError.

    While another process reads the journal, the WAL file is synced instead, without waiting for the reader.
    """
    with JournalErrors(path):
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            connection.execute("PRAGMA busy_timeout = 5000")
    if busy:
        try:
            # SQLite keeps no lock on this file. Its locks on the others would end if they were closed here.
            wal = open_regular(path.with_name(f"{path.name}-wal"))
            try:
                os.fsync(wal)
            finally:
                os.close(wal)
            sync_folder(path.parent)
        except OSError as error:
            raise JournalError(f"the journal {path} can't be synced: {error.strerror}") from error


class JournalErrors:
    """A context manager that turns errors of SQLite into JournalError. A class, since each row passes through one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _ERRORS):
            raise JournalError(f"the journal {self._path} can't be used: {_reason(error)}") from error


def wal_is_damaged(path: Path) -> bool:
    """Whether the WAL file of a journal has frames that SQLite does not read, because one of them was changed.

    The last frame may be cut off: then its writer was killed in the middle. Raises JournalError if it is no file.
    """
    try:
        with open(open_regular(path.with_name(f"{path.name}-wal")), "rb") as file:
            return _has_damaged_frames(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise JournalError(f"the journal {path} can't be read: {error.strerror}") from error


def _has_damaged_frames(file: BinaryIO) -> bool:
    header = file.read(_WAL_HEADER)
    if len(header) < _WAL_HEADER or not any(header):  # nothing was written yet
        return False
    page = int.from_bytes(header[8:12], "big")
    order = ">" if header[3] & 1 else "<"
    (state,) = _checksum(np.frombuffer(header, f"{order}u4", 6)[None], [(0, 0)])
    if header[:3] != b"\x37\x7f\x06" or state != _two_words(header[24:]) or page not in (1 << n for n in range(9, 17)):
        return bool(file.read(_FRAME_HEADER + 512))  # which no frame is shorter than
    size, has_ended = _FRAME_HEADER + page, False
    while count := len(block := file.read(_FRAMES_AT_ONCE * size)) // size:
        frames = np.frombuffer(block, np.uint8, count * size).reshape(count, size)
        covered = np.ascontiguousarray(np.concatenate([frames[:, :8], frames[:, _FRAME_HEADER:]], axis=1))
        stored = [_two_words(frame[16:24].tobytes()) for frame in frames]
        sums = _checksum(covered.view(f"{order}u4"), [state, *stored[:-1]])
        for frame, stored_sum, right_sum in zip(frames, stored, sums, strict=True):
            is_new = frame[8:16].tobytes() == header[16:24]  # others are of before: SQLite overwrites the file
            is_right = stored_sum == right_sum and not has_ended
            if is_new != is_right:
                return True
            has_ended = not is_right
        state = stored[-1]
    return False


def _checksum(words: npt.NDArray[np.uint32], states: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The checksum of each row of words as the WAL format defines it, going on from the state for that row.

    a += word + b and b += word + a, alternately and modulo 2^32, make a sum with Fibonacci numbers as weights.
    """
    length = words.shape[1]
    weights = _fibonacci(length + 2)
    words = words.astype(np.uint32)
    first, second = words @ weights[:length][::-1], words @ weights[1 : length + 1][::-1]
    before, at, after = (int(weights[length + n]) for n in (-1, 0, 1))
    return [
        ((int(a) + before * x + at * y) % (1 << 32), (int(b) + at * x + after * y) % (1 << 32))
        for a, b, (x, y) in zip(first, second, states, strict=True)
    ]


@functools.cache
def _fibonacci(count: int) -> npt.NDArray[np.uint32]:
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-2] + numbers[-1]) % (1 << 32))
    return np.array(numbers, np.uint32)


def _two_words(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:], "big")


def _files(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}{end}") for end in _BESIDE]


def _refuse_links(path: Path) -> None:
    """Raises JournalError if there is no journal, or a file that SQLite would open is none. A FIFO would hang it."""
    for file in _files(path):
        try:
            is_file = stat.S_ISREG(file.lstat().st_mode)
        except FileNotFoundError:
            if file == path:
                raise JournalError(f"there is no journal {path}") from None
            continue
        except OSError as error:
            raise JournalError(f"the journal {path} can't be opened: {error.strerror}") from error
        if not is_file:
            found = "a file of its own, not a symbolic link or anything else"
            raise JournalError(f"there is no journal {path}: {file.name} must be {found}")


def _is_settled(path: Path) -> bool:
    """Whether no process writes the journal or was killed while it wrote: then it is read alone, without locks.

    SQLite would otherwise make files beside it, leave them there, and fail in a folder that can't be written.
    """
    wal, shared = (path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm"))
    return not (shared.exists() or (wal.exists() and wal.stat().st_size))


def _reason(error: BaseException) -> str:
    """The message of an error as a part of one sentence, also if it quotes what is damaged or hostile."""
    text = "its text is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).partition("\n")[0]
    return "".join(character if character.isprintable() else "?" for character in text[:100])


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{parameters}", uri=True, isolation_level=None)
        connection.text_factory = bytes  # what is not UTF-8 would raise
        if sys.version_info >= (3, 11):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # `sync_file` empties the WAL file
            connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode safe from a kill, without a sync per step
        except BaseException:
            connection.close()
            raise
    except (OSError, *_ERRORS) as error:
        raise JournalError(f"the journal {path} can't be opened: {_reason(error)}") from error
    return connection


def _version(path: Path, connection: sqlite3.Connection) -> int:
    kind, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if kind != _APPLICATION_ID:
        raise JournalError(f"{path} is not the journal of a run")
    if version not in TABLES:
        raise JournalError(f"{path} is a journal of version {version}, but this zo_kernels reads versions 1 and 2")
    expected: set[tuple[str | None, ...]] = {("table", sql.split()[2], sql.split()[2], sql) for sql in TABLES[version]}
    if version == 1:
        expected |= {("index", "sqlite_autoindex_scores_1", "scores", None)}
    elif has_groups(connection):
        expected |= {("table", "groups", "groups", GROUPS)}
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchmany(len(expected) + 1)
    encoding = connection.execute("PRAGMA encoding").fetchone()[0]
    readable = {tuple(x.decode(errors="replace") if isinstance(x, bytes) else x for x in row) for row in found}
    if encoding != b"UTF-8" or len(found) != len(expected) or readable != expected:
        raise JournalError(f"{path} is not the journal of a run: its tables are others, or damaged")
    return int(version)
