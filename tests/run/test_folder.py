"""A run folder is made whole or not at all, and only one process uses it."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.run.files.small_run import train
from zo_kernels.errors import UsageError
from zo_kernels.run import folder as module
from zo_kernels.run.entries import is_half_made
from zo_kernels.run.folder import RunFolder
from zo_kernels.run.journal import Journal
from zo_kernels.train.loggers import LOGGERS


def create(out: Path) -> None:
    RunFolder.create(out, "{}\n", ["a", "b"]).close()


def test_it_has_its_files(tmp_path: Path) -> None:
    create(tmp_path / "new" / "run")
    names = ["checkpoints", "config.json", "journal.sqlite", "metrics.jsonl", "vocabulary.json"]
    assert sorted(os.listdir(tmp_path / "new" / "run")) == names
    RunFolder.open(tmp_path / "new" / "run").close()


@pytest.mark.parametrize("failing", ["vocabulary.json", "journal.sqlite", "config.json", "metrics.jsonl"])
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_left_of_what_could_not_be_made(
    failing: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begin = module.write_text, Journal.create

    def failing_write(path: Path, text: str) -> None:
        if path.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    def failing_create(path: Path, **_: object) -> Journal:
        begin(path).close()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "write_text", failing_write)
    if failing == "journal.sqlite":
        monkeypatch.setattr(Journal, "create", failing_create)
    out = tmp_path / "new" / "run"
    if exists:
        out.mkdir(parents=True)
    with pytest.raises(UsageError, match=f"can't make the folder {out}: (No space|Input)"):
        create(out)
    assert sorted(tmp_path.rglob("*")) == ([out.parent, out] if exists else [])


def half_made(out: Path, *names: str) -> None:
    (out / "checkpoints").mkdir(parents=True)
    for name in names:
        (out / name).write_text("half")


@pytest.mark.parametrize(
    "names",
    [
        (),
        (".vocabulary.json.0123abcd",),
        ("vocabulary.json", "journal.sqlite", "journal.sqlite-journal", "journal.sqlite-wal"),
        ("vocabulary.json", "journal.sqlite", ".config.json.01234567"),
    ],
)
def test_a_half_made_folder_is_begun_anew(names: tuple[str, ...], tmp_path: Path) -> None:
    half_made(tmp_path / "run", *names)
    assert is_half_made(tmp_path / "run")
    assert train(tmp_path / "run", 2).code == 0


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "notes.txt", "checkpoints/step-000000000.safetensors"]
)
def test_any_other_folder_stays(name: str, tmp_path: Path) -> None:
    half_made(tmp_path / "run", "vocabulary.json", "journal.sqlite", name)
    assert not is_half_made(tmp_path / "run")
    ended = train(tmp_path / "run", 2)
    assert ended.is_one_sentence
    assert "is not empty, and runs are never overwritten" in ended.err
    files = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == {"vocabulary.json", "journal.sqlite", Path(name).name}


def test_a_folder_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    half_made(tmp_path / "run", "vocabulary.json")
    other = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another process is training in"):
        create(tmp_path / "run")
    assert (tmp_path / "run" / "vocabulary.json").read_text() == "half"
    os.close(other)
    create(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_without_locks_a_file_system_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "run")

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", failing)
    sentence = rf"the file system of .* can't lock a folder \({os.strerror(number)}\).*: use a folder on a local disk"
    with pytest.raises(UsageError, match=sentence):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(UsageError, match=sentence):
        create(tmp_path / "new")
    assert os.listdir(tmp_path) == ["run"]


def test_a_logger_that_can_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.run.files import small_run

    class Failing:
        def start(self, config: object, folder: Path, step: int = 0) -> None:
            (folder / "wandb").mkdir()
            (folder / "wandb" / "id").write_text("1")
            raise ValueError("it can't start")

        def close(self) -> None:
            pass

    monkeypatch.setitem(LOGGERS, "failing", Failing)
    monkeypatch.setitem(small_run.SIZES, "log", ("failing",))
    ended = train(tmp_path / "new" / "run", 2)
    assert (ended.code, ended.err) == (2, "error: it can't start\n")
    assert os.listdir(tmp_path) == []


def test_a_run_that_goes_on_is_not_discarded(tmp_path: Path) -> None:
    create(tmp_path / "run")
    RunFolder.open(tmp_path / "run").discard()
    assert (tmp_path / "run" / "config.json").exists()
