"""Journals of version 1 are read as they are, and become those of version 2 with the first write."""

import resource
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run.test_journal import row, same
from zo_kernels.errors import JournalError
from zo_kernels.run.journal import Journal, Row, Scores

OLDER = Path(__file__).parents[1] / "data" / "runs-0.1" / "lstm" / "journal.sqlite"
Content = tuple[list[Row], list[Scores], bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(OLDER, tmp_path / "journal.sqlite"))


def version_of(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def content_of(path: Path, *, writable: bool = False) -> Content:
    with Journal.open(path, writable=writable) as journal:
        assert not journal.warnings
        rows = list(journal.rows())
        return rows, [journal.scores(step) for step in range(len(rows) + 1)], journal.digest_before(journal.next_step)


def alike(a: Content, b: Content) -> bool:
    return len(a[0]) == len(b[0]) and all(map(same, a[0], b[0])) and a[1:] == b[1:]


def test_reading_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    first = content_of(path)
    assert len(first[0]) == 13
    assert list(first[1][0]) == ["validation", "longer"]
    assert path.read_bytes() == before
    assert alike(content_of(path, writable=True), first)
    assert version_of(path) == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.append(row(13)),
        lambda journal: journal.truncate(12),
        lambda journal: journal.leave_gap(20, b"digest"),
        lambda journal: journal.add_scores(13, {"test": (1.0, 0.5)}),
    ],
)
def test_any_write_makes_it_new(write: Callable[[Journal], None], path: Path) -> None:
    rows, scores, digest = content_of(path)
    with Journal.open(path) as journal:
        write(journal)
    assert version_of(path) == 2
    with Journal.open(path) as journal:
        assert not journal.warnings
        found = list(journal.rows(*journal.stretches()[0]))
        assert all(map(same, found, rows))
        assert [journal.scores(step) for step in range(13)] == scores[:13]
        assert journal.next_step < 13 or journal.digest_before(13) == digest


def test_a_full_disk_leaves_it_as_it_was(path: Path) -> None:
    before = content_of(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(JournalError, match="can't be used"):
                journal.append(row(13))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert version_of(path) == 1
    assert alike(content_of(path), before)
    with Journal.open(path) as journal:
        journal.append(row(13))
    assert version_of(path) == 2


@pytest.mark.parametrize(
    "damage", ["DELETE FROM beginning", "INSERT INTO beginning VALUES (0, x'00')", "UPDATE beginning SET step = 'x'"]
)
def test_a_damaged_beginning_is_a_sentence(damage: str, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    with pytest.raises(JournalError, match="is damaged where it says with which step it begins"):
        Journal.open(path)
