"""The journal: what is written stays, and what is damaged is noticed."""

import math
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zo_kernels.errors import JournalError
from zo_kernels.run.journal import Journal, Row


def row(step: int, probes: int = 4, **changed: object) -> Row:
    numbers = np.arange(probes, dtype=np.float32) / 8 - step
    return Row(step, 0.25, 0.5, 2**64 - 3, numbers, 1.5 + step, 0.125 * step)._replace(**changed)  # type: ignore[arg-type]


def same(a: Row, b: Row) -> bool:
    numbers = a._replace(coeffs=None) == b._replace(coeffs=None)  # type: ignore[arg-type]
    return numbers and a.coeffs.tobytes() == b.coeffs.tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def write(path: Path, steps: int) -> list[Row]:
    rows = [row(step) for step in range(steps)]
    with Journal.create(path, digest=b"config") as journal:
        for r in rows:
            journal.append(r)
    return rows


def test_rows_come_back(path: Path) -> None:
    rows = write(path, 5)
    with Journal.open(path) as journal:
        assert (journal.first_step, journal.next_step) == (0, 5)
        assert all(map(same, journal.rows(), rows))
        assert all(map(same, journal.rows(2, 4), rows[2:4]))
        assert len(list(journal.rows(3, 3))) == 0
        assert journal.digest_before(0) == b"config"


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)
@example(numbers=(-0.0, -0.0, -0.0), seed=0, coeffs=[])  # SQLite gives 0.0 back
@given(
    numbers=st.tuples(finite, finite, finite),
    seed=st.integers(0, 2**64 - 1),
    coeffs=st.lists(st.floats(width=32), max_size=6),
)
def test_any_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, numbers: tuple[float, float, float], seed: int, coeffs: list[float]
) -> None:
    lr, eps, loss = numbers
    written = Row(0, lr, eps, seed, np.array(coeffs, np.float32), loss, 0.0)
    with Journal.create(tmp_path_factory.mktemp("journal") / "j.sqlite") as journal:
        journal.append(written)
        (found,) = journal.rows()
    assert same(found, written)


def test_a_loss_that_is_not_a_number_comes_back(path: Path) -> None:
    with Journal.create(path) as journal:
        journal.append(row(0, loss=math.nan))
        journal.append(row(1))
        assert math.isnan(next(journal.rows()).loss)


def test_a_fork_begins_later(path: Path) -> None:
    with Journal.create(path, first_step=7, digest=b"there") as journal:
        with pytest.raises(JournalError, match=r"the next row of .* must be of step 7, not 0"):
            journal.append(row(0))
        journal.append(row(7))
    with Journal.open(path) as journal:
        assert (journal.first_step, journal.next_step, journal.digest_before(7)) == (7, 8, b"there")
        with pytest.raises(JournalError, match="has no row of step 8: it has those of steps 7 to 7"):
            journal.digest_before(9)


def test_truncated_steps_are_written_anew(path: Path) -> None:
    rows = write(path, 5)
    with Journal.open(path) as journal:
        digest = journal.digest_before(5)
        journal.add_scores(2, {"validation": (1.0, 0.5)})
        journal.add_scores(3, {"validation": (0.5, 0.75)})
        journal.truncate(2)
        assert journal.next_step == 2
        assert journal.scores(2) == {"validation": (1.0, 0.5)}
        assert journal.scores(3) == {}
        for r in rows[2:]:
            journal.append(r)
        assert journal.digest_before(5) == digest
        journal.truncate(9)
        assert journal.next_step == 5


def test_scores_keep_their_order_and_are_replaced(path: Path) -> None:
    with Journal.create(path) as journal:
        journal.add_scores(0, {"z": (3.0, 0.0), "a": (math.nan, 1.0)})
        found = journal.scores(0)
        assert list(found) == ["z", "a"]
        assert math.isnan(found["a"][0])
        journal.add_scores(0, {"z": (1.0, 0.25)})
        assert journal.scores(0)["z"] == (1.0, 0.25)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE steps SET loss = loss + 1e-9 WHERE step = 3",
        "UPDATE steps SET lr = 0.3 WHERE step = 3",
        "UPDATE steps SET seed = 1 WHERE step = 3",
        "UPDATE steps SET seconds = 0 WHERE step = 3",
        "UPDATE steps SET coeffs = x'00000000000000000000000000000000' WHERE step = 3",
        "UPDATE steps SET coeffs = x'000000' WHERE step = 3",
        "UPDATE steps SET coeffs = 'text' WHERE step = 3",
        "UPDATE steps SET digest = x'0011223344556677' WHERE step = 3",
        "DELETE FROM steps WHERE step = 3",
        "UPDATE steps SET step = 17 WHERE step = 3",
    ],
)
def test_a_changed_row_is_found_and_those_before_it_are_good(path: Path, damage: str) -> None:
    rows = write(path, 6)
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    with Journal.open(path) as journal:
        found = journal.rows()
        assert all(same(next(found), r) for r in rows[:3])
        with pytest.raises(
            JournalError, match="the row of step 3 is missing or not what was written; the steps before"
        ):
            next(found)


def test_rows_missing_at_the_end_are_found(path: Path) -> None:
    write(path, 4)
    with Journal.open(path) as journal, pytest.raises(JournalError, match="the row of step 4 is missing"):
        list(journal.rows(0, 6))


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda path: None, "there is no journal"),
        (
            lambda path: path.write_text("not a database at all, and long enough to be looked at" * 20),
            "can't be opened",
        ),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE t (a)").connection.commit(), "is not the journal of"),
        (lambda path: path.mkdir(), "there is no journal"),
    ],
)
def test_what_is_not_a_journal(path: Path, prepare: Callable[[Path], object], sentence: str) -> None:
    prepare(path)
    with pytest.raises(JournalError, match=sentence):
        Journal.open(path)


def test_another_version(path: Path) -> None:
    write(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(JournalError, match="a journal of version 9, but this zo_kernels reads versions 1 and 2"):
        Journal.open(path)


def test_pages_torn_off_are_an_error(path: Path) -> None:
    write(path, 400)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(JournalError), Journal.open(path) as journal:
        list(journal.rows())


def test_a_full_disk_loses_nothing(path: Path) -> None:
    rows = write(path, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
        try:
            with pytest.raises(JournalError, match="can't be used"):
                journal.append(row(3, probes=100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert journal.next_step == 3
        journal.append(row(3))
    with Journal.open(path) as journal:
        assert all(map(same, journal.rows(), [*rows, row(3)]))


def test_it_can_be_read_while_it_is_written(path: Path) -> None:
    with Journal.create(path) as writer:
        writer.append(row(0))
        with Journal.open(path, writable=False) as reader:
            assert len(list(reader.rows())) == 1
            with pytest.raises(JournalError, match="readonly"):
                reader.append(row(1))
        writer.append(row(1))


def test_a_hundred_thousand_steps_take_the_bytes_they_should(path: Path) -> None:
    with Journal.create(path) as journal:
        for step in range(2000):
            journal.append(row(step, probes=96))
    assert path.stat().st_size / 2000 < 480  # 384 of them coefficients


def test_rows_after_a_gap(path: Path) -> None:
    rows = write(path, 3)
    with Journal.open(path) as journal:
        with pytest.raises(JournalError, match="has no gap before step 3: its next step is 3"):
            journal.leave_gap(3, b"x")
        journal.leave_gap(6, b"digest 6")
        assert journal.last_row() is not None
        journal.append(row(6))
        journal.leave_gap(9, b"digest 9")
        journal.leave_gap(12, b"digest 12")
    for writable in (False, True):
        with Journal.open(path, writable=writable) as journal:
            assert (journal.first_step, journal.next_step) == (0, 12)
            assert journal.stretches() == [(0, 3), (6, 7), (9, 9), (12, 12)]
            assert [step for step in range(14) if journal.knows(step)] == [0, 1, 2, 3, 6, 7, 9, 12]
            assert [journal.digest_before(step) for step in (6, 9, 12)] == [b"digest 6", b"digest 9", b"digest 12"]
            assert all(map(same, journal.rows(0, 3), rows))
            (last,) = journal.rows(6, 7)
            assert same(last, row(6))
            assert journal.last_row() is not None
            for start, stop in ((2, 4), (3, 4), (5, 7), (0, 12), (7, 8)):
                with pytest.raises(JournalError, match=r"the rows of steps . to . are missing from .*: they were lost"):
                    list(journal.rows(start, stop))
            with pytest.raises(JournalError, match="the rows of steps 3 to 5 are missing"):
                journal.digest_before(5)


@pytest.mark.parametrize(
    ("step", "next_step", "stretches"),
    [
        (12, 12, [(0, 3), (6, 7), (9, 9), (12, 12)]),
        (10, 9, [(0, 3), (6, 7), (9, 9)]),
        (9, 9, [(0, 3), (6, 7), (9, 9)]),
        (8, 7, [(0, 3), (6, 7)]),
        (6, 6, [(0, 3), (6, 6)]),
        (5, 3, [(0, 3)]),
        (2, 2, [(0, 2)]),
    ],
)
def test_a_journal_with_gaps_is_truncated(
    step: int, next_step: int, stretches: list[tuple[int, int]], path: Path
) -> None:
    write(path, 3)
    with Journal.open(path) as journal:
        journal.leave_gap(6, b"digest 6")
        journal.append(row(6))
        journal.leave_gap(9, b"digest 9")
        journal.leave_gap(12, b"digest 12")
        journal.truncate(step)
        assert journal.next_step == next_step
    with Journal.open(path) as journal:
        assert journal.stretches() == stretches
        journal.append(row(next_step))
    with Journal.open(path) as journal:
        assert sum(len(list(journal.rows(*stretch))) for stretch in journal.stretches()) > 0
        assert not journal.warnings


def test_a_negative_nan_is_not_damage(path: Path) -> None:
    with Journal.create(path) as journal:
        journal.append(row(0, loss=-math.nan))
        journal.add_scores(1, {"validation": (-math.nan, -0.0)})
    with Journal.open(path) as journal:
        assert math.isnan(next(journal.rows()).loss)
        assert math.isnan(journal.scores(1)["validation"][0])


def test_scores_of_earlier_steps_come_first(path: Path) -> None:
    with Journal.create(path) as journal:
        journal.add_scores(4, {"validation": (1.0, 0.5)})
        with pytest.raises(JournalError, match="the next scores must be of step 4 or later, not 3"):
            journal.add_scores(3, {"validation": (1.0, 0.5)})
