"""A run that dies goes on bit for bit as if it had not."""

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.train.crashes import finish, runs_alike, start
from tests.train.runs import FILES, SMALL, files_of, without_times
from zo_kernels.run.folder import checkpoint_path, checkpoint_steps
from zo_kernels.train.__main__ import main

STEPS = ["--steps", "40", "--checkpoint-every", "7", "--validate-every", "9"]
RUN = [*SMALL, *STEPS]
KINDS = {
    "plain": [],
    "window": ["--transforms", "clip-norm:1,momentum:0.9:4"],
    "adam": ["--dense", "adam", "--lr", "0.01", "--weight-decay", "0.1"],
    "forward": ["--estimator", "1.5-spsa", "--distribution", "sparse-4", "--lr", "0.01"],
    "normal": ["--distribution", "normal", "--lr", "0.01"],
    "agreement": ["--max-cosine-distance", "1.2", "--micro-batch-size", "2"],
    "segments": ["--segment-length", "3"],
    "batched": ["--forward", "batched"],
    "flashrnn": ["--forward", "flashrnn", "--model", "gru"],
    "bptt": ["--solver", "bptt", "--lr", "0.01"],
    "activity": ["--solver", "activity", "--lr", "0.01", "--probes", "2"],
    "truncated": ["--solver", "bptt", "--lr", "0.01", "--segment-length", "3"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_killed_at_twenty_random_moments(whole: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "run", random.Random(0)
    arguments = [*RUN, "--out", str(out)]
    seconds, kills = 0.0, 0
    for name in ("first", "second"):  # the first may have to wait for the server of processes
        started = time.perf_counter()
        assert finish([*RUN, "--out", str(tmp_path / name)]) == 0
        seconds = time.perf_counter() - started
    for _ in range(60):
        process = start(arguments)
        if kills < 20:
            process.join(moments.uniform(0.0, 0.7 * seconds))
        process.kill() if kills < 20 else process.join(120)
        process.join()
        kills += process.exitcode == -9
        if process.exitcode == 0:
            break
        if (out / "config.json").exists():  # else killed before there was anything to resume: begun anew
            arguments = ["--resume", str(out)]
    assert process.exitcode == 0
    assert kills >= 5
    assert runs_alike(out, whole)
    assert without_times(out) == without_times(whole)
    assert files_of(out) == FILES


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("folder made", 0),
        ("journal begun", 0),
        ("row not written", 0),
        ("row not written", 16),
        ("row written", 0),
        ("row written", 16),
        ("step taken", 16),
        ("checkpoint not begun", 0),
        ("checkpoint not begun", 3),
        ("checkpoint unnamed", 0),
        ("checkpoint unnamed", 3),
        ("checkpoint written", 3),
        ("scores not written", 0),
        ("scores not written", 4),
        ("scores written", 0),
        ("line not written", 16),
        ("weights not written", 0),
    ],
)
def test_killed_at_a_moment(moment: str, number: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert finish([*RUN, "--out", str(out)], moment, number) == -9
    if moment == "folder made":
        assert finish(["--resume", str(out)]) == 2  # there is nothing yet: begin again
        return
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)
    assert without_times(out) == without_times(whole)
    assert files_of(out) == FILES


def test_what_a_killed_process_left_unfinished_is_removed(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert finish([*RUN, "--out", str(out)], "weights not written", 0) == -9
    for name in (
        ".weights.safetensors.123",
        ".loss.png",
        ".metrics.jsonl",
        "checkpoints/.step-000000007.safetensors.9",
    ):
        (out / name).write_bytes(b"half")
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)
    assert files_of(out) == FILES
    assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_goes_on(kind: str, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert finish([*RUN, *KINDS[kind], "--out", str(whole)]) == 0
    assert finish([*RUN, *KINDS[kind], "--out", str(out)], "scores written", 3) == -9
    assert checkpoint_steps(out)[-1] < 27
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)


def test_ctrl_c_and_resume(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start([*RUN, "--out", str(out)])
    while process.is_alive() and not (out / "metrics.jsonl").exists():
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode in (0, 130)
    assert files_of(out) == FILES
    assert main(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)


@pytest.mark.parametrize("most_bytes", [40_000, 70_000])
def test_a_full_disk_loses_no_step(most_bytes: int, whole: Path, tmp_path: Path) -> None:
    """A row of the journal, or the picture, is what does not fit."""
    out = tmp_path / "run"
    assert finish([*RUN, "--out", str(out)], most_bytes=most_bytes) == 2
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)
    assert without_times(out) == without_times(whole)


def test_a_finished_run_stays_what_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "weights.safetensors").read_bytes()
    assert main(["--resume", str(whole)]) == 0
    assert "resumed after step 40 of 40" in capsys.readouterr().out
    assert (whole / "weights.safetensors").read_bytes() == before


def test_old_checkpoints_go_but_the_first(whole: Path) -> None:
    assert checkpoint_steps(whole) == [0, 28, 35, 40]


def killed(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert finish([*RUN, "--out", str(out)], "row written", 30) == -9
    return out


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = killed(tmp_path)
    newest = checkpoint_path(out, checkpoint_steps(out)[-1])
    newest.write_bytes(newest.read_bytes()[:-3] + b"abc")
    assert main(["--resume", str(out)]) == 0
    assert f"warning: the checkpoint {newest} is damaged" in capsys.readouterr().out
    assert runs_alike(out, whole)


def refused(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The sentence that --resume fails with."""
    capsys.readouterr()
    assert main(["--resume", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_without_a_whole_checkpoint_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = killed(tmp_path)
    for step in checkpoint_steps(out):
        checkpoint_path(out, step).write_bytes(b"nothing")
    assert "no checkpoint in" in refused(out, capsys)


def test_a_damaged_journal_is_an_error_that_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = killed(tmp_path)
    with sqlite3.connect(out / "journal.sqlite") as connection:
        connection.execute("UPDATE steps SET loss = 0 WHERE step = 29")
    sentence = refused(out, capsys)
    assert "the row of step 29 is missing or not what was written; the steps before it are whole" in sentence
    fork = tmp_path / "fork"
    assert main(["--fork", str(out), "--fork-step", "29", "--out", str(fork)]) == 0


def test_another_config_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = killed(tmp_path)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "lr": 0.5}))
    assert "is not the config that journal.sqlite belongs to" in refused(out, capsys)
    (out / "config.json").write_text(json.dumps({"lr": 0.5}))
    assert "is not the config of a run, or of another version" in refused(out, capsys)
    (out / "config.json").write_text("{")
    assert "is not JSON" in refused(out, capsys)
    (out / "config.json").unlink()
    assert "can't read config.json" in refused(out, capsys)


def test_a_checkpoint_of_another_run_is_not_taken(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = killed(tmp_path), tmp_path / "other"
    assert main([*RUN, "--seed", "1", "--out", str(other)]) == 0
    shutil.copy(checkpoint_path(other, 28), checkpoint_path(out, 28))
    capsys.readouterr()
    assert main(["--resume", str(out)]) == 0
    assert "is a checkpoint of another run" in capsys.readouterr().out
    assert runs_alike(out, whole)


def test_flags_of_a_resumed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = killed(tmp_path)
    assert f"--lr is 0.3 in {out}" in refused(out, capsys, "--lr", "0.1")
    assert f"--steps is 40 in {out}" in refused(out, capsys, "--steps", "50")
    assert "the task of" in refused(out, capsys, "--task", "reverse")
    assert "give one of them" in refused(out, capsys, "--fork", str(out))
    assert main(["--resume", str(out), "--checkpoint-every", "3", "--lr", "0.3"]) == 0
    assert checkpoint_steps(out)[-2:] == [39, 40]


def test_two_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    process = start([*SMALL, "--steps", "1000000", "--lr", "1e-4", "--out", str(out)])
    while process.is_alive() and not (out / "metrics.jsonl").exists():
        time.sleep(0.005)
    try:
        assert "another process is training in" in refused(out, capsys)
    finally:
        process.kill()


def test_a_refused_run_is_not_left_locked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = killed(tmp_path)
    (out / "journal.sqlite").rename(out / "aside")
    assert "there is no journal" in refused(out, capsys)
    (out / "aside").rename(out / "journal.sqlite")
    assert main(["--resume", str(out)]) == 0


def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no run folder" in refused(tmp_path / "nowhere", capsys)
    assert "can't read config.json" in refused(tmp_path, capsys)
