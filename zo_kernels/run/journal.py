"""The journal of a run has one row per step, written before the step changes the parameters.

A row holds the complete gradient of a step in four bytes per probe, since the seeds follow from (run seed, step). A
checkpoint and the rows after it rebuild the parameters of any step bit for bit, without forward passes. The file is an
SQLite database in WAL mode, so that a row, once written, survives if the process is killed. Rows are chained by
digests, which reveal a changed, missing or foreign row. 100,000 steps of 96 probes take 46 MB.
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
    """One step of a run.

    step: number of the step, from 0. lr, eps: learning rate and eps of the step. seed: the run seed, in [0, 2^64).
    coeffs: float32 [n], the coefficients in the order of the step's probes, NaN for a probe left out; empty for a
    solver without probes. loss: mean training loss in nats. seconds: training time so far, without validation.
    """

    step: int
    lr: float
    eps: float
    seed: int
    coeffs: npt.NDArray[np.float32]
    loss: float
    seconds: float

    def digest(self, previous: bytes) -> bytes:
        """Digest of this row and all rows before it, given theirs."""
        numbers = struct.pack(  # + 0.0, because SQLite has no -0.0
            "<qddQdd", self.step, self.lr + 0.0, self.eps + 0.0, self.seed, self.loss + 0.0, self.seconds + 0.0
        )
        return hashlib.blake2b(previous + numbers + _as_bytes(self.coeffs), digest_size=_DIGEST_BYTES).digest()


Scores = Mapping[str, tuple[float, float]]
"""(loss in nats per token, accuracy) of each set of batches, by the set's name."""


class Journal:
    """An open journal. It is a context manager that closes the file.

    Use `create` or `open`. Every method raises JournalError if the file can't be read or written, and writes all or
    nothing. Only one process may write a journal at a time, which the lock of the run folder ensures.
    """

    path: Path
    first_step: int
    """Step of the first row: 0, except in a fork."""
    next_step: int
    """Step of the next row to append."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        with self._errors():
            self.first_step, self._first_digest = connection.execute("SELECT step, digest FROM beginning").fetchone()
            last = connection.execute("SELECT step, digest FROM steps ORDER BY step DESC LIMIT 1").fetchone()
        self.next_step, self._digest = (last[0] + 1, last[1]) if last else (self.first_step, self._first_digest)

    @classmethod
    def create(cls, path: Path, *, first_step: int = 0, digest: bytes = b"") -> Journal:
        """Creates a journal.

        first_step, digest: for a fork, the `next_step` of the original run and the digest of its rows before that step.
        """
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
        """Opens an existing journal."""
        if not path.is_file():
            raise JournalError(f"there is no journal {path}")
        # Without a -wal file nobody is writing. SQLite would make one in order to read, and fail in a read-only folder.
        reading = "ro" if path.with_name(f"{path.name}-wal").exists() else "ro&immutable=1"
        connection = _connect(path, "rw" if writable else reading)
        with _as_journal_errors(path, connection):
            kind = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if kind != _APPLICATION_ID:
            raise JournalError(f"{path} is not the journal of a run")
        if version != _VERSION:
            raise JournalError(
                f"{path} is a journal of version {version}, but this zo_kernels reads version {_VERSION}"
            )
        return cls(path, connection)

    def append(self, row: Row) -> None:
        """Writes the row of the next step. When the call returns, the row survives a kill of the process."""
        if row.step != self.next_step:
            raise JournalError(f"the next row of {self.path} must be of step {self.next_step}, not {row.step}")
        digest = row.digest(self._digest)
        seed = row.seed - (1 << 64) if row.seed >= 1 << 63 else row.seed  # SQLite's integers are signed
        values = (row.step, row.lr, row.eps, seed, _as_bytes(row.coeffs), row.loss, row.seconds, digest)
        with self._errors():
            self._connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        self.next_step, self._digest = row.step + 1, digest

    def rows(self, start: int | None = None, stop: int | None = None) -> Iterator[Row]:
        """Reads the rows of steps start .. stop - 1, by default all, and checks each against its digest.

        Raises JournalError at the first row that is missing or damaged.
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
        """The stored digest of all rows before `step`. Raises JournalError if there is no row of step - 1."""
        if step == self.first_step:
            return bytes(self._first_digest)
        with self._errors():
            found = self._connection.execute("SELECT digest FROM steps WHERE step = ?", (step - 1,)).fetchone()
        if found is None:
            raise JournalError(f"{self.path} has no row of step {step - 1}: it has {self._extent()}")
        return bytes(found[0])

    def truncate(self, step: int) -> None:
        """Deletes the rows from `step` on and the scores after `step`, so that these steps can be taken again."""
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
        """Writes the scores of the parameters after `step` steps."""
        values = [(step, name, loss, accuracy) for name, (loss, accuracy) in scores.items()]
        with self._errors():
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", values)
            self._connection.execute("COMMIT")

    def scores(self, step: int) -> dict[str, tuple[float, float]]:
        """The scores written for `step`, in the order of `add_scores`; empty if there are none."""
        with self._errors():
            found = self._connection.execute(
                "SELECT name, loss, accuracy FROM scores WHERE step = ? ORDER BY rowid", (step,)
            ).fetchall()
        return {name: (_as_float(loss), _as_float(accuracy)) for name, loss, accuracy in found}

    def sync(self) -> None:
        """Makes all rows and scores survive a power cut."""
        with self._errors():
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Closes the file. Further calls do nothing."""
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
    """Turns errors of SQLite into JournalError, after a rollback of an open transaction."""
    try:
        yield
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.rollback()
        raise JournalError(f"the journal {path} can't be used: {error}") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
        connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode safe from a kill, without a sync per step
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} can't be opened: {error}") from error
    return connection


def _row(step: int, lr: float, eps: float, seed: int, coeffs: bytes, loss: float | None, seconds: float) -> Row | None:
    """The row made of these columns, or None if a column has a wrong type."""
    try:
        numbers = np.frombuffer(coeffs, dtype="<f4").astype(np.float32)
        return Row(step, lr, eps, seed % (1 << 64), numbers, _as_float(loss), seconds)
    except (TypeError, ValueError):
        return None


def _as_bytes(coeffs: npt.NDArray[np.float32]) -> bytes:
    return coeffs.astype("<f4", copy=False).tobytes()


def _as_float(value: float | None) -> float:
    """Turns NULL into NaN, which SQLite can't store."""
    return math.nan if value is None else value
