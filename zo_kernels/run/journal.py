"""The journal of a run: a row per step, written before the step changes the parameters.

A row holds a step's gradient whole, in four bytes a probe: the seeds follow from (run seed, step). With a checkpoint
and the rows since, the parameters after any step are rebuilt bit for bit without a forward pass. The file is SQLite in
WAL mode: rows that were written stay written when the process is killed, at whatever moment. Rows are chained by
digests, so that a changed, missing or foreign one is noticed. 100,000 steps of 96 probes take 46 MB.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import JournalError

_APPLICATION_ID = 0x7A6F6B31  # "zok1"
_VERSION = 1
_DIGEST_BYTES = 8
_TABLES = """
CREATE TABLE beginning (step INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE steps (
    step INTEGER PRIMARY KEY, lr REAL NOT NULL, eps REAL NOT NULL, seed INTEGER NOT NULL, coeffs BLOB NOT NULL,
    loss REAL, seconds REAL NOT NULL, digest BLOB NOT NULL
);
CREATE TABLE scores (
    step INTEGER NOT NULL, name TEXT NOT NULL, loss REAL, accuracy REAL, PRIMARY KEY (step, name)
);
"""


class Row(NamedTuple):
    """One step. step: its number, from 0. lr, eps: it was taken with. seed: of the run, in [0, 2^64). coeffs: float32
    [n], the estimate's coefficients in the order of the step's probes, NaN where one was left out; empty for a solver
    without probes. loss: mean training loss in nats. seconds: of training up to here, validations not counted."""

    step: int
    lr: float
    eps: float
    seed: int
    coeffs: npt.NDArray[np.float32]
    loss: float
    seconds: float

    def digest(self, previous: bytes) -> bytes:
        """Of this row and all before it."""
        lr, eps, loss, seconds = (x + 0.0 for x in (self.lr, self.eps, self.loss, self.seconds))  # SQLite has no -0.0
        numbers = struct.pack("<qddQdd", self.step, lr, eps, self.seed, loss, seconds)
        return hashlib.blake2b(previous + numbers + _as_bytes(self.coeffs), digest_size=_DIGEST_BYTES).digest()


Scores = Mapping[str, tuple[float, float]]
"""Loss in nats per token and accuracy of each set, by its name."""


class Journal:
    """An open journal. Every method raises JournalError, having written all or nothing, if the file does not allow it.

    Built by `create` or `open`; a context manager that closes it. One process writes a journal at a time: the run
    folder's lock sees to it.
    """

    path: Path
    first_step: int
    """The step that the first row has: 0, but for a fork."""
    next_step: int
    """The step that the next row must have."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        with self._errors():
            self.first_step, self._first_digest = connection.execute("SELECT step, digest FROM beginning").fetchone()
            last = connection.execute("SELECT step, digest FROM steps ORDER BY step DESC LIMIT 1").fetchone()
        self.next_step, self._digest = (last[0] + 1, last[1]) if last else (self.first_step, self._first_digest)

    @classmethod
    def create(cls, path: Path, *, first_step: int = 0, digest: bytes = b"") -> Journal:
        """A new journal. first_step, digest: where that of another run ended which this one goes on from."""
        connection = _connect(path, "rwc")
        with _as_journal_errors(path, connection):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute("INSERT INTO beginning VALUES (?, ?)", (first_step, digest))
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
        return cls(path, connection)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> Journal:
        """The journal that lies there."""
        if not path.is_file():
            raise JournalError(f"there is no journal {path}")
        connection = _connect(path, "rw" if writable else "ro")
        with _as_journal_errors(path, connection):
            kind = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if kind != _APPLICATION_ID:
            raise JournalError(f"{path} is not the journal of a run")
        if version != _VERSION:
            raise JournalError(f"{path} is a journal of version {version}, but this one reads version {_VERSION}")
        return cls(path, connection)

    def append(self, row: Row) -> None:
        """Writes the next step's row; when this returns, it survives the process."""
        if row.step != self.next_step:
            raise JournalError(f"the next row of {self.path} is that of step {self.next_step}, not {row.step}")
        digest = row.digest(self._digest)
        seed = row.seed - (1 << 64) if row.seed >= 1 << 63 else row.seed  # SQLite's integers have a sign
        values = (row.step, row.lr, row.eps, seed, _as_bytes(row.coeffs), row.loss, row.seconds, digest)
        with self._errors():
            self._connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        self.next_step, self._digest = row.step + 1, digest

    def rows(self, start: int | None = None, stop: int | None = None) -> Iterator[Row]:
        """The rows of steps start .. stop - 1 (None: first_step, next_step), each checked against its digest.

        Raises JournalError at the first that is missing or not what was written.
        """
        start, stop = self.first_step if start is None else start, self.next_step if stop is None else stop
        previous, expected = self.digest_before(start), start
        with self._errors():
            found = self._connection.execute(
                "SELECT * FROM steps WHERE step >= ? AND step < ? ORDER BY step", (start, stop)
            )
            for step, lr, eps, seed, coeffs, loss, seconds, digest in found:
                row = _row(step, lr, eps, seed, coeffs, loss, seconds)
                if step != expected or row is None or row.digest(previous) != digest:
                    raise JournalError(self._damage(expected))
                yield row
                previous, expected = digest, step + 1
        if expected < stop:
            raise JournalError(self._damage(expected))

    def digest_before(self, step: int) -> bytes:
        """Of all rows before that of `step`, as they say themselves."""
        if step == self.first_step:
            return bytes(self._first_digest)
        with self._errors():
            found = self._connection.execute("SELECT digest FROM steps WHERE step = ?", (step - 1,)).fetchone()
        if found is None:
            raise JournalError(f"{self.path} has no row of step {step - 1}: it has {self._extent()}")
        return bytes(found[0])

    def truncate(self, step: int) -> None:
        """Forgets the rows from `step` on, and scores after it: of steps that are to be taken anew."""
        if step >= self.next_step:
            return
        digest = self.digest_before(step)
        with self._errors():
            self._connection.execute("BEGIN")
            self._connection.execute("DELETE FROM steps WHERE step >= ?", (step,))
            self._connection.execute("DELETE FROM scores WHERE step > ?", (step,))
            self._connection.execute("COMMIT")
        self.next_step, self._digest = step, digest

    def add_scores(self, step: int, scores: Scores) -> None:
        """Writes what the parameters score before the step of that number (after so many steps)."""
        values = [(step, name, loss, accuracy) for name, (loss, accuracy) in scores.items()]
        with self._errors():
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", values)
            self._connection.execute("COMMIT")

    def scores(self, step: int) -> dict[str, tuple[float, float]]:
        """What `add_scores` wrote for a step, in its order; empty if nothing."""
        with self._errors():
            found = self._connection.execute(
                "SELECT name, loss, accuracy FROM scores WHERE step = ? ORDER BY rowid", (step,)
            ).fetchall()
        return {name: (_as_float(loss), _as_float(accuracy)) for name, loss, accuracy in found}

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _errors(self) -> AbstractContextManager[None]:
        return _as_journal_errors(self.path, self._connection)

    def _extent(self) -> str:
        if self.next_step == self.first_step:
            return "none yet"
        return f"those of steps {self.first_step} to {self.next_step - 1}"

    def _damage(self, step: int) -> str:
        what = f"the row of step {step} is missing or not what was written"
        return f"{self.path} is damaged: {what}; the steps before it are whole"


@contextmanager
def _as_journal_errors(path: Path, connection: sqlite3.Connection) -> Iterator[None]:
    """SQLite's errors in a sentence; a transaction that was begun is rolled back."""
    try:
        yield
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.rollback()
        raise JournalError(f"the journal {path} can't be used: {error}") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
        connection.execute("PRAGMA synchronous = NORMAL")  # of WAL: safe from a killed process, without a sync a step
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} can't be opened: {error}") from error
    return connection


def _row(step: int, lr: float, eps: float, seed: int, coeffs: bytes, loss: float | None, seconds: float) -> Row | None:
    """The row, or None if its columns are not what a row has."""
    try:
        numbers = np.frombuffer(coeffs, dtype="<f4").astype(np.float32)
        return Row(step, lr, eps, seed % (1 << 64), numbers, _as_float(loss), seconds)
    except (TypeError, ValueError):
        return None


def _as_bytes(coeffs: npt.NDArray[np.float32]) -> bytes:
    return coeffs.astype("<f4", copy=False).tobytes()


def _as_float(value: float | None) -> float:
    """SQLite has no NaN and keeps it as NULL."""
    return math.nan if value is None else value
