"""The journal of a run has one row per step, written before the step changes the parameters.

A row holds the complete gradient of a step in four bytes per probe, since the seeds follow from (run seed, step). A
checkpoint and the rows after it rebuild the parameters of any step bit for bit, without forward passes. The file is an
SQLite database in WAL mode, so that a row, once written, survives if the process is killed. Rows and scores are chained
by digests, which reveal what was changed, is missing or is foreign. 100,000 steps of 96 probes take 46 MB.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import JournalError
from . import tables
from .journal_file import GROUPS, VERSION, JournalErrors, create_file, has_groups, open_file, sync_file, wal_is_damaged
from .row import Group, Row, as_row
from .tables import Beginning, Extent, Scores, ScoreTable

__all__ = ["Group", "Journal", "Row", "Scores"]

_MOST_UNSYNCED = 2000
"""After about so many pages of 4096 bytes the WAL file is synced and emptied, even without a checkpoint."""


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
    warnings: list[str]
    """What was found damaged without being needed: a sentence each."""

    def __init__(self, path: Path, connection: sqlite3.Connection, version: int = VERSION) -> None:
        self.path = path
        self.warnings = []
        self._connection = connection
        self._errors = JournalErrors(path)
        self._version = version
        self._unsynced = 0
        self._scores: ScoreTable | None = None
        with self._errors:
            self._beginnings = tables.read_beginnings(path, connection, version)
            self.next_step, self._digest = tables.read_end(path, connection, self._beginnings[-1])
            self._extent = tables.read_extent(connection, version)
        self.first_step = self._beginnings[0].step
        if self._extent is None and version > 1:
            self.warnings.append(f"{path} is damaged where it says how long it is: rows may be missing at its end")
        if self._extent is not None and self._extent.step > self.next_step:  # then reading the last rows fails
            self.next_step, self._digest = self._extent.step, self._extent.digest

    @classmethod
    def create(cls, path: Path, *, first_step: int = 0, digest: bytes = b"") -> Journal:
        """Creates a journal. When the call returns, it survives a power cut.

        first_step, digest: for a fork, the `next_step` of the original run and the digest of its rows before that step.
        """
        create_file(path, lambda connection: tables.fill(connection, Beginning(first_step, first_step, digest)))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> Journal:
        """Opens an existing journal. If it is not `writable`, the folder need not be writable either."""
        is_damaged = wal_is_damaged(path)
        connection, version = open_file(path, writable=writable)
        try:
            if writable:
                sync_file(path, connection)  # the next row would otherwise follow what a killed process left
            journal = cls(path, connection, version)
        except BaseException:
            connection.close()
            raise
        if is_damaged:
            lost = f"rows from step {journal.next_step} on may be missing"
            journal.warnings.append(f"the end of {path.name}-wal is damaged in {path.parent}: {lost}")
        return journal

    def append(self, row: Row) -> None:
        """Writes the row of the next step. When the call returns, the row survives a kill of the process."""
        if row.step != self.next_step:
            raise JournalError(f"the next row of {self.path} must be of step {self.next_step}, not {row.step}")
        if self._unsynced >= _MOST_UNSYNCED:
            self.sync()
        columns = row.columns(self._digest)
        insert = "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        if self._version < VERSION:
            with self._transaction():
                pass  # only the upgrade
        if row.groups:
            with self._transaction():
                if not has_groups(self._connection):
                    self._connection.execute(GROUPS)
                self._connection.execute("INSERT INTO groups VALUES (?, ?)", (row.step, row.group_bytes()))
                self._connection.execute(insert, columns)
        else:
            with self._errors:
                self._connection.execute(insert, columns)
        self._unsynced += 1 + len(columns[4]) // 4096
        self.next_step, self._digest = row.step + 1, columns[-1]

    def sync(self) -> None:
        """Makes all rows and scores so far survive a power cut."""
        if self._unsynced == 0:
            return
        with self._transaction():
            self._write_extent(self.next_step, self._digest, self._read_scores())
        sync_file(self.path, self._connection)
        self._unsynced = 0

    def rows(self, start: int | None = None, stop: int | None = None) -> Iterator[Row]:
        """Reads the rows of steps start .. stop - 1, by default all, and checks each against its digest.

        Raises JournalError at the first row that is missing or damaged.
        """
        start, stop = self.first_step if start is None else start, self.next_step if stop is None else stop
        if start >= stop:
            return
        for beginning in self._beginnings[1:]:
            if start < beginning.step and stop > beginning.missing_from:
                raise JournalError(self._gap(beginning))
        previous, expected = self.digest_before(start), start
        with self._errors:
            groups = "(SELECT numbers FROM groups WHERE groups.step = steps.step)"
            groups = groups if has_groups(self._connection) else "NULL"
            found = self._connection.execute(
                f"SELECT *, {groups} FROM steps WHERE step >= ? AND step < ? ORDER BY step", (start, stop)
            )
            for *columns, digest, numbers in found:
                row = as_row(columns, numbers)
                if row is None or row.step != expected or row.digest(previous) != digest:
                    raise JournalError(self._damage(expected))
                yield row
                previous, expected = digest, expected + 1
        if expected < stop:
            raise JournalError(self._damage(expected))

    def stretches(self) -> list[tuple[int, int]]:
        """(start, stop) of the rows without a gap: one stretch, but for a journal that `leave_gap` was called on."""
        stops = [*(b.missing_from for b in self._beginnings[1:]), self.next_step]
        return [(b.step, stop) for b, stop in zip(self._beginnings, stops, strict=True)]

    def last_row(self) -> Row | None:
        """The last row, or None if there are no rows."""
        for start, stop in reversed(self.stretches()):
            if start < stop:
                return next(self.rows(stop - 1, stop))
        return None

    def knows(self, step: int) -> bool:
        """Whether the digest of the rows before `step` is in the journal: whether it is neither in a gap nor beyond."""
        return any(start <= step <= stop for start, stop in self.stretches())

    def digest_before(self, step: int) -> bytes:
        """The stored digest of all rows before `step`. Raises JournalError if there is no row of step - 1."""
        if step == self.next_step:
            return self._digest
        for beginning in self._beginnings:
            if step == beginning.step:
                return beginning.digest
            if beginning.missing_from < step < beginning.step:
                raise JournalError(self._gap(beginning))
        with self._errors:
            found = self._connection.execute("SELECT digest FROM steps WHERE step = ?", (step - 1,)).fetchone()
        if found is None:
            raise JournalError(f"{self.path} has no row of step {step - 1}: it has {self._range()}")
        if not isinstance(found[0], bytes):
            raise JournalError(self._damage(step - 1))
        return found[0]

    def truncate(self, step: int) -> None:
        """Deletes the rows from `step` on and the scores after `step`, so that these steps can be taken again.

        If `step` is in a gap, the next step is that of the first row missing.
        """
        if step >= self.next_step:
            return
        kept = [beginning for beginning in self._beginnings if beginning.step <= step]
        after = self._beginnings[len(kept) :]
        end = min(step, after[0].missing_from) if after else step
        digest = self.digest_before(end)
        with self._transaction():
            self._connection.execute("DELETE FROM steps WHERE step >= ?", (end,))
            if has_groups(self._connection):
                self._connection.execute("DELETE FROM groups WHERE step >= ?", (end,))
            self._connection.execute("DELETE FROM beginnings WHERE step > ?", (step,))
            self._connection.execute("DELETE FROM scores WHERE step > ?", (step,))
            scores = tables.read_scores(self.path, self._connection, VERSION, kept[0].digest)
            self._write_extent(end, digest, scores)
        self.next_step, self._digest, self._beginnings, self._scores = end, digest, kept, scores

    def leave_gap(self, step: int, digest: bytes) -> None:
        """Goes on from `step`, beyond the last row: the rows before it are missing, and that is recorded.

        digest: that of the missing rows, which a checkpoint of `step` has.
        """
        if step <= self.next_step:
            raise JournalError(f"{self.path} has no gap before step {step}: its next step is {self.next_step}")
        beginning = Beginning(step, self.next_step, digest)
        with self._transaction():
            tables.write_beginning(self._connection, self._beginnings, beginning)
            self._write_extent(step, digest, self._read_scores())
        self.next_step, self._digest, self._beginnings = step, digest, [*self._beginnings, beginning]

    def add_scores(self, step: int, scores: Scores) -> None:
        """Writes the scores of the parameters after `step` steps. Those of earlier steps must be written already.

        A name has up to 64 letters, digits, _ and -.
        """
        table = self._read_scores()
        entries = table.entries(step, scores)
        with self._transaction():
            tables.write_entries(self._connection, entries)
        table.add(entries)

    def scores(self, step: int) -> dict[str, tuple[float, float]]:
        """The scores written for `step`, in the order of `add_scores`; empty if there are none.

        The first call reads and checks the scores of all steps.
        """
        return dict(self._read_scores().by_step.get(step, {}))

    def losses(self, name: str) -> list[tuple[int, float]]:
        """(step, loss) of each time that a set was scored, in order. Reads as `scores` does."""
        return [(step, found[name][0]) for step, found in self._read_scores().by_step.items() if name in found]

    def close(self) -> None:
        """Closes the file. Further calls do nothing."""
        with suppress(JournalError):  # what is not synced survives all but a power cut
            self.sync()
        self._connection.close()
        self._unsynced = 0

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, pages: int = 1) -> Iterator[None]:
        with self._errors:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._version < VERSION:
                    tables.upgrade(self._connection, self._beginnings[0], self._read_scores())
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise
        self._version = VERSION
        self._unsynced += pages

    def _read_scores(self) -> ScoreTable:
        if self._scores is None:
            with self._errors:
                digest = self._beginnings[0].digest
                self._scores = tables.read_scores(self.path, self._connection, self._version, digest, self._extent)
        return self._scores

    def _write_extent(self, step: int, digest: bytes, scores: ScoreTable) -> None:
        tables.write_extent(self._connection, Extent(step, digest, scores.count, scores.digest))

    def _range(self) -> str:
        if self.next_step == self.first_step:
            return "none yet"
        return f"those of steps {self.first_step} to {self.next_step - 1}"

    def _gap(self, beginning: Beginning) -> str:
        steps = f"the rows of steps {beginning.missing_from} to {beginning.step - 1}"
        return f"{steps} are missing from {self.path}: they were lost before the run went on from a checkpoint"

    def _damage(self, step: int) -> str:
        what = f"the row of step {step} is missing or not what was written"
        return f"{self.path} is damaged: {what}; the steps before it are whole"
