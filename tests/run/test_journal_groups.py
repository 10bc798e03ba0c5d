"""Rows with the hyper-parameters of parameter groups, in a table of their own that the digests cover."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from zo_kernels.errors import JournalError
from zo_kernels.run.journal import Group, Journal, Row


def row(step: int, *groups: Group) -> Row:
    return Row(step, 0.1, 0.2, 3, np.array([step, np.nan], np.float32), 1.5, float(step), groups)


ROWS = [
    row(0),
    row(1, Group(0.1, 0.2, 0.01, -1.0)),
    row(2),
    row(3, Group(0.1, 0.2, 0.0, 1.0), Group(0.3, 1e-3, 0.0, 1.0)),
]


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Journal.create(tmp_path / "journal.sqlite") as journal:
        for each in ROWS:
            journal.append(each)
    return tmp_path / "journal.sqlite"


@pytest.mark.parametrize("writable", [True, False])
def test_they_come_back(path: Path, writable: bool) -> None:
    with Journal.open(path, writable=writable) as journal:
        assert [each.groups for each in journal.rows()] == [each.groups for each in ROWS]
        assert [each.groups for each in journal.rows(3, 4)] == [ROWS[3].groups]
        assert journal.last_row().groups == ROWS[3].groups


def test_rows_without_groups_need_no_table(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "journal.sqlite") as journal:
        journal.append(ROWS[0])
        assert journal.digest_before(1) == ROWS[0].digest(b"")
    assert "groups" not in tables(tmp_path / "journal.sqlite")


def test_a_reader_sees_groups_that_came_after_it_opened_the_journal(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "journal.sqlite") as writer:
        writer.append(ROWS[0])
        with Journal.open(tmp_path / "journal.sqlite", writable=False) as reader:
            writer.append(ROWS[1])
            assert next(reader.rows(1, 2)).groups == ROWS[1].groups


def test_steps_that_are_taken_again(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.truncate(1)
        journal.append(row(1, Group(0.5, 0.2, 0.0, 1.0)))
        assert [each.groups for each in journal.rows()] == [(), (Group(0.5, 0.2, 0.0, 1.0),)]
        journal.truncate(1)
        journal.append(row(1))
        assert [each.groups for each in journal.rows()] == [(), ()]


@pytest.mark.parametrize(
    ("statement", "step"),
    [
        ("DELETE FROM groups WHERE step = 1", 1),
        ("UPDATE groups SET numbers = zeroblob(32) WHERE step = 3", 3),
        ("UPDATE groups SET numbers = zeroblob(31) WHERE step = 3", 3),
        ("UPDATE groups SET numbers = 'text' WHERE step = 3", 3),
        ("UPDATE groups SET numbers = x'' WHERE step = 1", 1),
        ("INSERT INTO groups VALUES (2, zeroblob(32))", 2),
        ("DROP TABLE groups", 1),
    ],
)
def test_damage(path: Path, statement: str, step: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()
    with Journal.open(path) as journal, pytest.raises(JournalError, match=f"the row of step {step} is missing or not"):
        list(journal.rows())


def test_another_table_of_that_name(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TABLE groups")
    connection.execute("CREATE TABLE groups (step, numbers)")
    connection.close()
    with pytest.raises(JournalError, match="its tables are others"):
        Journal.open(path)
