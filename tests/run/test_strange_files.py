"""Links, pipes, sockets and folders in place of the files of a run are refused in one sentence, and not written to."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.files.small_run import PNG, train
from zo_kernels.errors import CheckpointError, JournalError, UsageError
from zo_kernels.generate import load_run, load_state, read_prompt, save_state
from zo_kernels.plot import plot_runs
from zo_kernels.replay import replay
from zo_kernels.run.folder import checkpoint_path
from zo_kernels.run.tensors import save_tensors
from zo_kernels.train import default_config
from zo_kernels.train import run as run_config
from zo_kernels.train.config import read_config

STEPS = 8
NEWEST = "checkpoints/step-000000008.safetensors"
FILES = (
    *("config.json", "vocabulary.json", "metrics.jsonl", "weights.safetensors", "lr_search.json", "loss.png"),
    "arithmetic.json",
    *("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "journal.sqlite-journal"),
)
FOLDERS = ("checkpoints", "tensorboard", "wandb")


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """Ends a test that waits for a pipe."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("strange") / "run"
    assert train(out, STEPS).code == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def put_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def put_dangling_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nowhere"))


def put_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path, _: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # since the paths of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def put_folder(path: Path, _: Path) -> None:
    path.mkdir()


def put_device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


STRANGE = (put_link, put_dangling_link, put_pipe, put_socket, put_folder, put_device)
Put = Callable[[Path, Path], None]


def replace_by(put: Put, path: Path, victim: Path) -> None:
    """Puts something else in place of a file. A link leads to a copy of the file at `victim`."""
    if path.is_dir():
        if put is not put_folder:
            path.rename(victim)
    elif path.exists():
        path.rename(victim)
    else:
        victim.write_text("precious")
    if not path.exists():
        put(path, victim)


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def content(victim: Path) -> object:
    return victim.read_bytes() if victim.is_file() else names(victim)


@pytest.mark.parametrize("put", STRANGE)
def test_resume_refuses_all(put: Put, whole: Path, tmp_path: Path) -> None:
    for name in (*FILES, *FOLDERS):
        if put is put_folder and name in FOLDERS:
            continue
        place = tmp_path / name
        place.mkdir()
        run, victim = Path(shutil.copytree(whole, place / "run")), place / "victim"
        replace_by(put, run / name, victim)
        before = content(victim), names(place)
        ended = train(run, STEPS, resume=True)
        assert ended.is_one_sentence, (name, ended)
        assert name.split(".")[0] in ended.err, (name, ended)
        assert (content(victim), names(place)) == before, name


@pytest.mark.parametrize("put", STRANGE)
def test_a_strange_checkpoint_is_passed_over(put: Put, run: Path, tmp_path: Path) -> None:
    replace_by(put, run / NEWEST, tmp_path / "victim")
    before, weights = content(tmp_path / "victim"), (run / "weights.safetensors").read_bytes()
    ended = train(run, STEPS, resume=True)
    assert ended.code == 0, ended
    assert "step-000000008.safetensors can't be read: " in ended.out.replace("\n", "")
    assert (run / "weights.safetensors").read_bytes() == weights
    assert content(tmp_path / "victim") == before


READERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "generate": (load_run, ("config.json", "vocabulary.json", "weights.safetensors")),
    "replay": (replay, ("config.json", "vocabulary.json", "checkpoints", *FILES[-4:])),
    "plot": (lambda run: plot_runs([run], run.parent / "x.png"), ("config.json", "metrics.jsonl", *FILES[-4:])),
}


@pytest.mark.parametrize("put", STRANGE)
@pytest.mark.parametrize("reader", READERS)
def test_readers_refuse_what_they_would_read(reader: str, put: Put, whole: Path, tmp_path: Path) -> None:
    read, needed = READERS[reader]
    for name in needed:
        if put is put_folder and name in FOLDERS:
            continue
        place = tmp_path / name
        place.mkdir()
        run, victim = Path(shutil.copytree(whole, place / "run")), place / "victim"
        replace_by(put, run / name, victim)
        before = content(victim), names(place)
        with pytest.raises((UsageError, JournalError, CheckpointError)) as error:
            read(run)
        assert "\n" not in str(error.value)
        assert (content(victim), names(place)) == before, name


@pytest.mark.parametrize("put", STRANGE[2:])
def test_targets_that_are_not_files_are_refused(put: Put, run: Path, tmp_path: Path) -> None:
    loaded = load_run(run)
    state = read_prompt(loaded.model, loaded.encode("a"))
    for name in ("state", "picture.png"):
        put(tmp_path / name, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists and is not a saved state"):
        save_state(tmp_path / "state", state, loaded)
    with pytest.raises(UsageError):
        load_state(tmp_path / "state", loaded)
    with pytest.raises(UsageError, match=r"can't write|is not a PNG"):
        plot_runs([run], tmp_path / "picture.png")


def test_a_run_behind_a_link_is_used(run: Path, tmp_path: Path) -> None:
    weights = (run / "weights.safetensors").read_bytes()
    link = tmp_path / "link"
    link.symlink_to(run)
    (run / NEWEST).unlink()
    assert train(link, STEPS, resume=True).code == 0
    assert (run / "weights.safetensors").read_bytes() == weights
    assert link.is_symlink()
    assert load_run(link).symbols == load_run(run).symbols
    assert replay(link).step == STEPS
    (tmp_path / "picture").write_bytes(PNG)
    (tmp_path / "picture.png").symlink_to(tmp_path / "picture")
    plot_runs([link], tmp_path / "picture.png")  # replaces the link
    assert (tmp_path / "picture").read_bytes() == PNG


def test_an_unfinished_name_that_is_a_link_is_not_written_through(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    links = [run / ".metrics.jsonl", run / ".loss.png", run / ".weights.safetensors.12", run / "checkpoints/.tmpAbC123"]
    for link in links:
        link.symlink_to(victim)
    assert train(run, STEPS, resume=True).code == 0
    assert victim.read_text() == "precious"
    assert all(link.is_symlink() for link in links)  # what no run has written is left alone


def test_what_killed_processes_left_is_removed_and_nothing_else(run: Path) -> None:
    left = (
        *(".config.json.1f", ".vocabulary.json", ".metrics.jsonl.0123abcd", ".weights.safetensors.4194304"),
        *(".lr_search.json.7", ".loss.png", ".tmpAbC12z", "checkpoints/.step-000000008.safetensors.99"),
        *("checkpoints/.tmpZZZZZZ",),
    )
    others = (".tmp", ".tmpAbC12zz", ".notes", ".loss.png.old", "checkpoints/.step-8.safetensors.99", "notes.txt")
    for name in (*left, *others):
        (run / name).write_bytes(b"half")
    (run / ".loss.png.abc").mkdir()
    assert train(run, STEPS, resume=True).code == 0
    assert not [name for name in left if (run / name).exists()]
    assert all((run / name).read_bytes() == b"half" for name in others)
    assert (run / ".loss.png.abc").is_dir()


def test_long_files_are_not_read(run: Path) -> None:
    for name, read in (("config.json", read_config), ("vocabulary.json", load_run)):
        before = (run / name).read_bytes()
        with (run / name).open("ab") as file:
            file.truncate(1 << 40)
        with pytest.raises(UsageError, match=r"longer than the \d+ bytes"):
            read(run)
        (run / name).write_bytes(before)


def test_json_that_is_nested_deeply_is_one_sentence(run: Path) -> None:
    for name, read in (("config.json", read_config), ("vocabulary.json", load_run)):
        before = (run / name).read_bytes()
        (run / name).write_text("[" * 100_000)
        with pytest.raises(UsageError, match=f"{name} is not JSON"):
            read(run)
        (run / name).write_bytes(before)


def test_a_checkpoint_of_another_program(run: Path) -> None:

    path = checkpoint_path(run, STEPS)
    path.unlink()
    for solver in ("", "[", '{"items": 1}', '{"tensor": "none"}'):
        metadata = {"format": "zo_kernels checkpoint", "version": "1", "step": "8", "journal": "", "solver": solver}
        save_tensors(path, {}, metadata)
        ended = train(run, STEPS, resume=True)
        assert ended.code == 0
        assert "is damaged: it does not hold the state of a solver" in ended.out.replace("\n", "")


@pytest.mark.parametrize(("before", "after"), [('"zo"', '"zg"'), ('"lstm"', '"gru"'), ('"cpu"', '"abc"')])
def test_a_changed_config_is_not_replayed_or_forked(before: str, after: str, run: Path, tmp_path: Path) -> None:
    text = (run / "config.json").read_text()
    assert before in text
    (run / "config.json").write_text(text.replace(before, after))
    with pytest.raises(JournalError, match=r"config\.json is not the config that journal\.sqlite belongs to"):
        replay(run)
    with pytest.raises((JournalError, UsageError)) as error:
        run_config(default_config(fork=run, steps=STEPS + 1, out=tmp_path / "fork"), quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "fork").exists()
