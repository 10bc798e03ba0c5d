"""Journals are read where nothing can be written, and survive where power is lost."""

import json
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.test_journal import row, same, write
from tests.train.runs import SMALL
from zo_kernels.errors import JournalError
from zo_kernels.run import folder
from zo_kernels.run.journal import Journal
from zo_kernels.train.__main__ import main as train

NOBODY = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """A journal of five rows in a folder that any user can enter, and nobody but root can write to."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name, "journal.sqlite"), 5)
        os.chmod(name, 0o555)
        yield Path(name, "journal.sqlite")
        os.chmod(name, 0o755)


def unprivileged(act: Callable[[], str]) -> str:
    """What `act` returns, or the sentence that it fails with, in a process without the rights of root."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        said = "failed"
        try:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            said = act()
        except JournalError as error:
            said = str(error)
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    os.wait()
    with os.fdopen(reading) as file:
        return file.read()


def read(path: Path) -> str:
    with Journal.open(path, writable=False) as journal:
        return f"{len(list(journal.rows()))} rows"


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_a_finished_journal_is_read_where_nothing_can_be_written(path: Path) -> None:
    assert unprivileged(lambda: read(path)) == "5 rows"
    assert names(path) == {"journal.sqlite"}


def test_a_live_journal_is_read_where_nothing_can_be_written(path: Path) -> None:
    with Journal.open(path) as writer:
        writer.append(row(5))
        assert unprivileged(lambda: read(path)) == "6 rows"
        writer.sync()
        assert unprivileged(lambda: read(path)) == "6 rows"
        writer.append(row(6))
        assert unprivileged(lambda: read(path)) == "7 rows"


def test_what_needs_a_writable_folder_is_said(path: Path) -> None:
    with Journal.open(path) as writer:
        writer.append(row(5))
        data = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for name in ("journal.sqlite", "journal.sqlite-wal"):  # as a copy without the -shm file leaves it
        (path.parent / name).write_bytes(data[name])
    said = unprivileged(lambda: read(path))
    assert said.endswith("copy the folder to another place")
    assert "can't be read here, where its folder can't be written" in said
    assert names(path) == {"journal.sqlite", "journal.sqlite-wal"}


def main_file_alone(path: Path, to: Path) -> Path:
    """The journal as a power cut leaves it that takes all that no sync covered: without its WAL file."""
    to.mkdir(exist_ok=True)
    return Path(shutil.copy(path, to / path.name))


def test_a_new_journal_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b)))
    with Journal.create(tmp_path / "journal.sqlite", first_step=3, digest=b"there"):
        assert done == ["sync file", "rename", "sync folder"]
        with Journal.open(main_file_alone(tmp_path / "journal.sqlite", tmp_path / "cut")) as journal:
            assert (journal.first_step, journal.next_step, journal.digest_before(3)) == (3, 3, b"there")


def test_a_journal_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(JournalError, match="can't be created: No space left on device"):
            Journal.create(path)
    assert names(path) == set()
    write(path, 2)
    with pytest.raises(JournalError, match="there is a file of that name"):
        Journal.create(path)
    assert read(path) == "2 rows"


def test_what_is_synced_survives_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path) as journal:
        for step in range(7):
            journal.append(row(step))
        journal.add_scores(7, {"validation": (1.0, 0.5)})
        journal.sync()
        assert Path(f"{path}-wal").stat().st_size == 0
        journal.append(row(7))
        with Journal.open(main_file_alone(path, tmp_path / "cut")) as cut:
            assert all(map(same, cut.rows(), map(row, range(7))))
            assert cut.next_step == 7
            assert cut.scores(7) == {"validation": (1.0, 0.5)}
            assert not cut.warnings


def test_a_sync_does_not_wait_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "journal.sqlite", []
    write(path, 5)
    with Journal.open(path) as journal, Journal.open(path, writable=False) as reader:
        journal.append(row(5))
        rows = reader.rows()
        next(rows)  # the reader keeps what it sees
        journal.append(row(6))
        sync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda at: (synced.append(os.readlink(f"/proc/self/fd/{at}")), sync(at)))
        journal.sync()
        assert synced == [f"{path}-wal", str(tmp_path)]
        assert len(list(rows)) == 4
        assert len(list(journal.rows())) == 7


def test_the_wal_file_is_emptied_without_checkpoints_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zo_kernels.run.journal._MOST_UNSYNCED", 50)
    path = tmp_path / "journal.sqlite"
    with Journal.create(path) as journal:
        sizes = []
        for step in range(200):
            journal.append(row(step, probes=96))
            sizes.append(Path(f"{path}-wal").stat().st_size)
    assert max(sizes) < 120 * 4120
    assert read(path) == "200 rows"


def test_a_checkpoint_is_named_after_its_rows_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int]] = []
    save = folder.save_checkpoint

    def saving(path: Path, checkpoint: folder.Checkpoint) -> None:
        cut = main_file_alone(tmp_path / "run" / "journal.sqlite", tmp_path / f"cut{checkpoint.step}")
        with sqlite3.connect(cut) as connection:
            held.append((checkpoint.step, connection.execute("SELECT count(*) FROM steps").fetchone()[0]))
        save(path, checkpoint)

    monkeypatch.setattr(folder, "save_checkpoint", saving)
    assert train([*SMALL, "--checkpoint-every", "2", "--out", str(tmp_path / "run")]) == 0
    assert held == [(0, 0), (2, 2), (4, 4), (5, 5)]
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5
