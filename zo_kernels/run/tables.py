"""The tables of a journal beside the steps: where rows begin and end, and the scores. Each has checksums."""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JournalError
from .journal_file import make_tables
from .row import as_float, digest_of, is_step, score_digest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Scores = Mapping[str, tuple[float, float]]
"""(loss in nats per token, accuracy) of each set of batches, by the set's name."""


class Beginning(NamedTuple):
    """Where rows begin: at the start of the journal, and after a gap.

    step: that of the first row. missing_from: the first step that is missing before it; `step` where none is. digest:
    that of all rows before `step`.
    """

    step: int
    missing_from: int
    digest: bytes

    def checksum(self, previous: bytes) -> bytes:
        """Covers this beginning and all before it, given theirs."""
        return digest_of(previous + struct.pack("<qq", self.step, self.missing_from) + self.digest)


class Extent(NamedTuple):
    """What the journal held when it was last synced: rows before `step` and so many `scores`, with their digests."""

    step: int
    digest: bytes
    scores: int
    scores_digest: bytes

    def checksum(self) -> bytes:
        """Covers all four."""
        numbers = struct.pack("<qqq", self.step, self.scores, len(self.digest))
        return digest_of(numbers + self.digest + self.scores_digest)


class Entry(NamedTuple):
    """A row of the table of scores. number: from 0. digest: of this entry and all before it."""

    number: int
    step: int
    name: str
    loss: float
    accuracy: float
    digest: bytes


class ScoreTable:
    """All scores. by_step: the scores of each step, in order. count, digest: number and digest of what was written."""

    def __init__(self, digest: bytes) -> None:
        self.by_step: dict[int, dict[str, tuple[float, float]]] = {}
        self.count = 0
        self.digest = digest

    @property
    def last_step(self) -> int:
        """The newest step with scores, or 0."""
        return next(reversed(self.by_step), 0)

    def entries(self, step: int, scores: Scores) -> list[Entry]:
        """What to write for the scores of a step. Raises JournalError for a name or a step that does not fit."""
        if step < self.last_step:
            raise JournalError(f"the next scores must be of step {self.last_step} or later, not {step}")
        entries, digest = [], self.digest
        for number, (name, (loss, accuracy)) in enumerate(scores.items(), self.count):
            if not _NAME.fullmatch(name):
                raise JournalError(f"{name!r} can't name scores: use up to 64 letters, digits, _ and -")
            digest = score_digest(digest, step, name, loss, accuracy)
            entries.append(Entry(number, step, name, loss, accuracy, digest))
        return entries

    def add(self, entries: Sequence[Entry]) -> None:
        """Adds entries that were written, or read and checked."""
        for entry in entries:
            self.by_step.setdefault(entry.step, {})[entry.name] = (entry.loss, entry.accuracy)
            self.count, self.digest = entry.number + 1, entry.digest


def fill(connection: sqlite3.Connection, beginning: Beginning) -> None:
    """Writes the beginning of a new journal."""
    write_beginning(connection, [], beginning)
    write_extent(connection, Extent(beginning.step, beginning.digest, 0, beginning.digest))


def upgrade(connection: sqlite3.Connection, beginning: Beginning, scores: ScoreTable) -> None:
    """Turns the tables of version 1 into those that are written now, with the same content."""
    connection.execute("DROP TABLE beginning")
    connection.execute("DROP TABLE scores")
    make_tables(connection, but="steps")
    write_beginning(connection, [], beginning)
    again = ScoreTable(beginning.digest)
    for step, found in scores.by_step.items():
        entries = again.entries(step, found)
        write_entries(connection, entries)
        again.add(entries)


def read_beginnings(path: Path, connection: sqlite3.Connection, version: int) -> list[Beginning]:
    """Reads where rows begin: one beginning, and one more after each gap. Raises JournalError if that is damaged."""
    if version == 1:
        found = [(step, step, digest, None) for step, digest in connection.execute("SELECT * FROM beginning")]
    else:
        found = connection.execute("SELECT * FROM beginnings ORDER BY step").fetchall()
    beginnings, previous = [], b""
    for step, missing_from, digest, checksum in found:
        if not (is_step(step) and is_step(missing_from) and isinstance(digest, bytes)):
            break
        beginnings.append(Beginning(step, missing_from, digest))
        previous = beginnings[-1].checksum(previous)
        if version > 1 and checksum != previous:
            break
    else:
        if beginnings and (version > 1 or len(beginnings) == 1):
            return beginnings
    raise JournalError(f"{path} is damaged where it says with which step it begins: restore the file from a copy")


def read_end(path: Path, connection: sqlite3.Connection, beginning: Beginning) -> tuple[int, bytes]:
    """The step after the last row, and the digest of all rows. beginning: the last one. Raises JournalError."""
    last = connection.execute("SELECT step, digest FROM steps ORDER BY step DESC LIMIT 1").fetchone()
    if last is None or last[0] < beginning.step:
        return beginning.step, beginning.digest
    if not (is_step(last[0]) and isinstance(last[1], bytes)):
        raise JournalError(f"{path} is damaged: its last row is not what was written")
    return last[0] + 1, last[1]


def read_extent(connection: sqlite3.Connection, version: int) -> Extent | None:
    """What the journal held when it was last synced; None if that is damaged, or not written by this version."""
    found = connection.execute("SELECT * FROM extent").fetchmany(2) if version > 1 else []
    for step, digest, scores, scores_digest, checksum in found:
        if is_step(step) and is_step(scores) and isinstance(digest, bytes) and isinstance(scores_digest, bytes):
            extent = Extent(step, digest, scores, scores_digest)
            if len(found) == 1 and checksum == extent.checksum():
                return extent
    return None


def read_scores(
    path: Path, connection: sqlite3.Connection, version: int, digest: bytes, extent: Extent | None = None
) -> ScoreTable:
    """Reads and checks all scores. digest: that with which the journal begins.

    Raises JournalError if one is damaged or missing, also of those in `extent`.
    """
    table = ScoreTable(digest)
    if version == 1:
        found = connection.execute("SELECT 0, *, NULL FROM scores ORDER BY step, rowid")
    else:
        found = connection.execute("SELECT * FROM scores ORDER BY number")
    for columns in found:
        entry = _entry(columns, table)
        if entry is None or (version > 1 and (entry.number, entry.digest) != (columns[0], columns[-1])):
            break
        table.add([entry])
        if extent is not None and table.count == extent.scores and table.digest != extent.scores_digest:
            break
    else:
        if extent is None or table.count >= extent.scores:
            return table
    what = f"a score of step {table.last_step} or later is missing or not what was written"
    raise JournalError(f"{path} is damaged: {what}; --fork needs no scores and goes on from any step")


def write_beginning(connection: sqlite3.Connection, before: Sequence[Beginning], beginning: Beginning) -> None:
    """Writes one more beginning."""
    checksum = b""
    for each in (*before, beginning):
        checksum = each.checksum(checksum)
    connection.execute("INSERT INTO beginnings VALUES (?, ?, ?, ?)", (*beginning, checksum))


def write_extent(connection: sqlite3.Connection, extent: Extent) -> None:
    """Replaces the extent."""
    connection.execute("DELETE FROM extent")
    connection.execute("INSERT INTO extent VALUES (?, ?, ?, ?, ?)", (*extent, extent.checksum()))


def write_entries(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Writes scores."""
    connection.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)", entries)


def _entry(columns: Sequence[Any], table: ScoreTable) -> Entry | None:
    """The next entry of the table with these columns, or None if one is of a kind that is never written."""
    _, step, name, loss, accuracy, _ = columns
    numbers = all(isinstance(x, (float, type(None))) for x in (loss, accuracy))
    text = name.decode(errors="replace") if isinstance(name, bytes) else ""
    if not (numbers and is_step(step) and _NAME.fullmatch(text)):
        return None
    loss, accuracy = as_float(loss), as_float(accuracy)
    digest = score_digest(table.digest, step, text, loss, accuracy)
    return Entry(table.count, step, text, loss, accuracy, digest)
