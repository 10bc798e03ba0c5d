"""One bit of a journal is flipped: what is read is what was written, or a sentence says why not."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.run.test_journal import row, same
from zo_kernels.errors import JournalError
from zo_kernels.run import journal_file
from zo_kernels.run.journal import Journal, Row, Scores
from zo_kernels.run.journal_file import wal_is_damaged

SYNCED, WRITTEN = 16, 22
Content = tuple[list[Row], dict[int, Scores]]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of small pages, so that its trees are deep, as a killed process leaves it: with a WAL file."""
    folder = tmp_path_factory.mktemp("intact")
    patch = pytest.MonkeyPatch()
    connect = journal_file._connect

    def with_small_pages(path: Path, parameters: str) -> sqlite3.Connection:
        connection = connect(path, parameters)
        connection.execute("PRAGMA page_size = 512")
        return connection

    patch.setattr(journal_file, "_connect", with_small_pages)
    with Journal.create(folder / "writing.sqlite", digest=b"config") as journal:
        for step in range(WRITTEN):
            if step == SYNCED:
                journal.sync()
            journal.append(row(step, probes=12))
            journal.add_scores(step + 1, {"validation": (step / 8, 0.5), "longer": (1.5, step / 64)})
        for end in ("", "-wal"):
            shutil.copy(folder / f"writing.sqlite{end}", folder / f"journal.sqlite{end}")
    patch.undo()
    return folder / "journal.sqlite"


def content_of(path: Path, *, writable: bool) -> tuple[Content, list[str]]:
    with Journal.open(path, writable=writable) as journal:
        rows = list(journal.rows())
        return (rows, {step: journal.scores(step) for step in range(WRITTEN + 1)}), journal.warnings


def check_flips(intact: Path, folder: Path, flips: Iterable[tuple[str, int, int]]) -> Counter[str]:
    """Opens the journal with each bit flipped. Counts what came of it."""
    truth, warnings = content_of(copied(intact, folder / "truth"), writable=False)
    assert not warnings
    assert (len(truth[0]), len(truth[1][WRITTEN])) == (WRITTEN, 2)
    counts = Counter[str]()
    for end, at, bit in flips:
        path = copied(intact, folder / "flipped")
        with open(f"{path}{end}", "r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ (1 << bit)]))
        where = f"bit {bit} of byte {at} of journal.sqlite{end}"
        try:
            (rows, scores), warnings = content_of(path, writable=at % 2 == 0)
        except JournalError as error:
            counts["refused" if "\n" not in str(error) else f"{where}: {error}"] += 1
            continue
        assert all(map(same, rows, truth[0])), where
        if len(rows) == WRITTEN and scores == truth[1]:
            counts["unchanged"] += 1
            continue
        assert warnings, where
        assert len(rows) >= SYNCED, where
        assert all(found in ({}, truth[1][step]) or step == len(rows) + 1 for step, found in scores.items()), where
        counts["fewer"] += 1
    return counts


def copied(intact: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for end in ("", "-wal"):
        shutil.copy(f"{intact}{end}", f"{folder / 'journal.sqlite'}{end}")
    return folder / "journal.sqlite"


def every_byte(intact: Path) -> list[tuple[str, int, int]]:
    """Each byte of both files, with one of its bits."""
    sizes = {end: Path(f"{intact}{end}").stat().st_size for end in ("", "-wal")}
    return [(end, at, (at * 5 + 3) % 8) for end, size in sizes.items() for at in range(size)]


def test_a_flipped_bit_gives_no_other_numbers(intact: Path, root: Path) -> None:
    counts = check_flips(intact, root / "flips", every_byte(intact)[::37])
    assert counts.keys() == {"unchanged", "fewer", "refused"}


@pytest.mark.slow
def test_no_flipped_bit_gives_other_numbers(intact: Path, root: Path) -> None:
    counts = check_flips(intact, root / "flips", every_byte(intact))
    print(counts)
    assert counts.keys() == {"unchanged", "fewer", "refused"}


def test_a_wal_file_is_damaged_if_a_byte_was_changed_and_not_if_its_end_is_missing(intact: Path) -> None:
    wal = Path(f"{copied(intact, intact.parent / 'cut')}-wal")
    data = wal.read_bytes()
    path = wal.with_name("journal.sqlite")
    for size in range(0, len(data) + 1, 89):
        wal.write_bytes(data[:size])
        assert not wal_is_damaged(path), size
    for at in range(0, len(data), 41):
        wal.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        assert wal_is_damaged(path), at
    wal.write_bytes(data[:32] + bytes(len(data) - 32))  # a power cut may leave zeros
    assert not wal_is_damaged(path)
    wal.unlink()
    assert not wal_is_damaged(path)


def test_frames_of_before_are_not_damage(tmp_path: Path) -> None:
    """SQLite writes the WAL file from its start again without cutting it off, if a reader was there meanwhile."""
    path = tmp_path / "journal.sqlite"
    with Journal.create(path) as journal:
        for step in range(4):
            journal.append(row(step))
        journal._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        size = Path(f"{path}-wal").stat().st_size
        journal.append(row(4))
        assert Path(f"{path}-wal").stat().st_size == size
        assert not wal_is_damaged(path)
        with Journal.open(path, writable=False) as reader:
            assert len(list(reader.rows())) == 5
            assert not reader.warnings


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE scores SET loss = loss + 1e-9 WHERE number = 3",
        "UPDATE scores SET accuracy = NULL WHERE number = 3",
        "UPDATE scores SET name = 'other' WHERE number = 3",
        "UPDATE scores SET step = 7 WHERE number = 3",
        "UPDATE scores SET digest = x'0011223344556677' WHERE number = 3",
        "UPDATE scores SET number = 99 WHERE number = 3",
        "DELETE FROM scores WHERE number = 3",
        "DELETE FROM scores WHERE number >= 3",
        "DELETE FROM scores",
    ],
)
def test_a_changed_score_is_found(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path) as journal:
        for step in range(4):
            journal.append(row(step))
            journal.add_scores(step + 1, {"validation": (0.5, 0.25), "test": (0.5 + step, 0.75)})
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    with Journal.open(path) as journal:
        assert len(list(journal.rows())) == 4
        with pytest.raises(JournalError, match=r"is damaged: a score of step \d or later is missing or not what was"):
            journal.scores(1)


def test_lost_rows_and_scores_at_the_end_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path) as journal:
        for step in range(6):
            journal.append(row(step))
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM steps WHERE step >= 4")
    with Journal.open(path) as journal:
        assert journal.next_step == 6
        assert len(list(journal.rows(0, 4))) == 4
        with pytest.raises(JournalError, match="the row of step 4 is missing"):
            list(journal.rows())
