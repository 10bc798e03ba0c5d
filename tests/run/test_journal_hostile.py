"""What lies in place of a journal, or was made to look like one, is refused in a sentence."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run.test_journal import row, write
from zo_kernels.errors import JournalError
from zo_kernels.run import journal_file
from zo_kernels.run.journal import Journal
from zo_kernels.run.journal_file import TABLES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    write(path, 3)
    with Journal.open(path) as journal:
        journal.add_scores(3, {"validation": (1.0, 0.5)})
    return path


def change(path: Path, *statements: str) -> None:
    with sqlite3.connect(path, isolation_level=None) as connection:
        for statement in statements:
            connection.execute(statement)


def read(path: Path) -> None:
    with Journal.open(path, writable=False) as journal:
        list(journal.rows())
        journal.scores(3)
        journal.last_row()


def refusal(path: Path) -> str:
    with pytest.raises(JournalError) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).isprintable()
    return str(refused.value)


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize(
    "put",
    [
        os.mkfifo,
        Path.mkdir,
        lambda file: file.symlink_to(file.with_name("elsewhere")),
        lambda file: file.symlink_to("nowhere"),
    ],
    ids=["fifo", "folder", "link", "broken link"],
)
def test_what_is_not_a_file_is_not_opened(put: Callable[[Path], object], end: str, path: Path) -> None:
    file = Path(f"{path}{end}")
    if not end:
        file.rename(file.with_name("elsewhere"))
    put(file)
    for writable in (False, True):
        with pytest.raises(JournalError, match=f"there is no journal {path}|can't be read: it is |Is a directory"):
            Journal.open(path, writable=writable)


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE more (a)"],
        ["CREATE INDEX more ON steps (loss)"],
        ["CREATE TRIGGER more AFTER INSERT ON steps BEGIN DELETE FROM steps; END"],
        ["CREATE VIEW more AS SELECT 1"],
        ["ALTER TABLE steps ADD COLUMN more"],
        ["DROP TABLE extent"],
        ["DROP TABLE scores", "CREATE VIEW scores AS SELECT 1, 2, 3, 4, 5, 6"],
        [
            "DROP TABLE steps",
            "CREATE VIEW steps AS WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) "
            "SELECT i step, 0 lr, 0 eps, 0 seed, x'' coeffs, 0 loss, 0 seconds, x'' digest FROM n",
        ],
        ["DROP TABLE steps", "CREATE VIRTUAL TABLE steps USING fts4 (step)"],
        ["DROP TABLE steps", "CREATE TABLE steps (step, lr, eps, seed, coeffs, loss, seconds, digest)"],
        ["DROP TABLE beginnings", TABLES[1][0]],
        ["PRAGMA user_version = 1"],
    ],
)
def test_other_tables_are_refused(statements: list[str], path: Path) -> None:
    change(path, *statements)
    assert "is not the journal of a run: its tables are others, or damaged" in refusal(path)


def test_another_encoding_is_refused(path: Path) -> None:
    os.unlink(path)
    with sqlite3.connect(path, isolation_level=None) as connection:
        for statement in ("PRAGMA encoding = 'UTF-16'", *TABLES[2], "PRAGMA application_id = 0x7A6F6B31"):
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 2")
    assert "its tables are others, or damaged" in refusal(path)


@pytest.mark.parametrize("value", ["NULL", "'text'", "x'ff'", "1e400", "-1e300", "9223372036854775807", "-1", "''"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("steps", name) for name in ("step", "lr", "eps", "seed", "coeffs", "loss", "seconds", "digest")),
        *(("beginnings", name) for name in ("step", "missing_from", "digest", "checksum")),
        *(("scores", name) for name in ("number", "step", "name", "loss", "accuracy", "digest")),
        *(("extent", name) for name in ("step", "digest", "scores", "scores_digest", "checksum")),
    ],
)
def test_values_that_are_never_written(table: str, column: str, value: str, path: Path) -> None:
    last = " WHERE step = 2" if table == "steps" else ""
    try:
        change(path, "PRAGMA ignore_check_constraints = ON", f"UPDATE {table} SET {column} = {value}{last}")
    except sqlite3.IntegrityError:
        return  # SQLite itself refuses it
    if table == "extent":
        with Journal.open(path) as journal:
            assert ["damaged where it says how long it is" in warning for warning in journal.warnings] == [True]
            assert len(list(journal.rows())) == 3
    else:
        refusal(path)


@pytest.mark.parametrize("table", ["beginnings", "steps", "scores", "extent"])
def test_emptied_tables(table: str, path: Path) -> None:
    change(path, f"DELETE FROM {table}")
    if table == "extent":
        read(path)
    else:
        assert "is damaged" in refusal(path)


def test_a_name_that_is_not_utf_8(path: Path) -> None:
    change(path, "UPDATE scores SET name = CAST(x'ff41' AS TEXT)")
    assert "a score of step 0 or later is missing or not what was written" in refusal(path)


def test_a_message_that_quotes_the_file_is_one_printable_sentence(path: Path) -> None:
    data = path.read_bytes()
    for text in (b"\x1b[31m", b"\n\n\n\n\n", b"\xff\xff\xff\xff\xff"):
        path.write_bytes(data.replace(b"CREATE TABLE extent", b"CREATE TABLE " + text + b"t"))
        refusal(path)


def test_a_huge_value_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "_MOST_BYTES", 1 << 20)
    change(path, f"UPDATE steps SET coeffs = zeroblob({1 << 21}) WHERE step = 1")
    refusal(path)


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "x" * 65, "a\n", "\ud800"])
def test_names_of_scores_are_plain(name: str, path: Path) -> None:
    with Journal.open(path) as journal:
        with pytest.raises(JournalError, match="can't name scores: use up to 64 letters, digits, _ and -"):
            journal.add_scores(4, {"good": (1.0, 1.0), name: (1.0, 1.0)})
        assert journal.scores(4) == {}
        journal.add_scores(4, {"Aa_-9" * 12: (1.0, 1.0)})


def test_a_root_page_that_is_that_of_another_table(path: Path) -> None:
    change(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'scores') "
        "WHERE name = 'steps'",
    )
    refusal(path)


def test_a_file_of_header_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])
    refusal(path)
    path.write_bytes(b"")
    assert "is not the journal of a run" in refusal(path)


def test_a_row_beyond_all_steps(path: Path) -> None:
    change(path, f"UPDATE steps SET step = {(1 << 62) - 1} WHERE step = 2")
    with Journal.open(path) as journal:
        assert len(list(journal.rows(0, 2))) == 2
        with pytest.raises(JournalError, match="the row of step 2 is missing"):
            list(journal.rows())
        with pytest.raises(JournalError, match="must be of step"):
            journal.append(row(3))
