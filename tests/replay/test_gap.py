"""A run whose journal lost rows, but has a newer checkpoint, goes on from there. It says which steps are missing."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.train.crashes import finish
from tests.train.runs import SMALL, metrics_of, weights_of
from zo_kernels.errors import CheckpointError, JournalError, UsageError
from zo_kernels.plot import plot_runs
from zo_kernels.replay import replay
from zo_kernels.run import folder
from zo_kernels.run.checkpoint import load_checkpoint, save_checkpoint
from zo_kernels.run.folder import checkpoint_path, checkpoint_steps
from zo_kernels.run.journal import Journal
from zo_kernels.train.__main__ import main

RUN = [*SMALL, "--steps", "30", "--checkpoint-every", "8", "--keep-checkpoints", "2", "--validate-every", "10"]
MISSING = "the rows of steps 10 to 23 are missing from"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after 27 steps, of which its disk kept the first 10 rows, and checkpoints 0, 16, 24."""
    out = tmp_path_factory.mktemp("killed") / "run"
    assert finish([*RUN, "--out", str(out)], "row written", 27) == -9
    with Journal.open(out / "journal.sqlite") as journal:
        journal.truncate(10)
    assert checkpoint_steps(out) == [0, 16, 24]
    return out


@pytest.fixture
def cut(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "cut"))


def same(a: Path, b: Path, step: int) -> bool:
    weights = replay(b, step).weights
    return all(torch.equal(x, weights[name]) for name, x in replay(a, step).weights.items())


def test_it_goes_on_from_the_checkpoint(
    cut: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", str(cut)]) == 0
    said = capsys.readouterr().out
    assert f"warning: {MISSING} {cut / 'journal.sqlite'}: going on from the checkpoint behind them" in said
    assert "resumed after step 24 of 30" in said
    assert all(torch.equal(x, weights_of(whole)[name]) for name, x in weights_of(cut).items())
    assert [line["step"] for line in metrics_of(cut)] == [*range(11), *range(25, 31)]
    with Journal.open(cut / "journal.sqlite") as journal:
        assert journal.stretches() == [(0, 10), (24, 30)]
    plot_runs([cut, whole], tmp_path / "picture.png")
    for step in (0, 9, 10, 24, 27, 30):
        assert same(cut, whole, step), step
    for step in (11, 16, 23):
        with pytest.raises(JournalError, match=MISSING):
            replay(cut, step)
    fork = tmp_path / "fork"
    assert main(["--fork", str(cut), "--fork-step", "26", "--out", str(fork)]) == 0
    assert same(fork, whole, 30)
    assert main(["--fork", str(cut), "--fork-step", "15", "--out", str(tmp_path / "other")]) == 2
    assert MISSING in capsys.readouterr().err
    assert main(["--resume", str(cut)]) == 0
    assert "missing" not in capsys.readouterr().out


def test_it_is_replayed_and_forked_as_it_is(cut: Path, whole: Path, tmp_path: Path) -> None:
    before = (cut / "journal.sqlite").read_bytes()
    warnings: list[str] = []
    replayed = replay(cut, warn=warnings.append)
    assert (replayed.step, replayed.replayed) == (24, 0)
    assert [MISSING in warning for warning in warnings] == [True]
    assert same(cut, whole, 24)
    assert same(cut, whole, 16)
    assert same(cut, whole, 7)
    with pytest.raises(UsageError, match="has steps 0 to 10, not 15"):
        replay(cut, 15)
    fork = tmp_path / "fork"
    assert main(["--fork", str(cut), "--out", str(fork)]) == 0
    assert metrics_of(fork)[0]["step"] == 24
    assert same(fork, whole, 30)
    assert (cut / "journal.sqlite").read_bytes() == before


def test_it_is_killed_and_goes_on_again(cut: Path, whole: Path) -> None:
    assert finish(["--resume", str(cut)], "row written", 2) == -9
    checkpoint_path(cut, 24).unlink()
    with Journal.open(cut / "journal.sqlite") as journal:
        assert journal.stretches()[0] == (0, 10)
        assert journal.next_step > 24
    with pytest.raises(JournalError, match=MISSING):
        replay(cut)


def test_back_propagation_goes_on_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*RUN, "--solver", "bptt", "--lr", "0.01"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main([*flags, "--out", str(whole)]) == 0
    assert finish([*flags, "--out", str(out)], "row written", 27) == -9
    with Journal.open(out / "journal.sqlite") as journal:
        journal.truncate(10)
    assert main(["--resume", str(out)]) == 0
    assert f"{MISSING}" in capsys.readouterr().out
    assert all(torch.equal(x, weights_of(whole)[name]) for name, x in weights_of(out).items())


def test_a_checkpoint_of_another_run_is_not_gone_on_from(
    cut: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert main([*RUN, "--seed", "1", "--out", str(other)]) == 0
    for step in (16, 24):
        checkpoint_path(cut, step).unlink()
    shutil.copy(checkpoint_path(other, 24), checkpoint_path(cut, 24))
    older = load_checkpoint(checkpoint_path(whole, 24))._replace(run=b"")  # version 0.1 did not say
    save_checkpoint(checkpoint_path(cut, 16), older._replace(step=16))
    capsys.readouterr()
    assert main(["--resume", str(cut)]) == 0
    said = capsys.readouterr().out
    for step in (16, 24):
        assert f"{checkpoint_path(cut, step)} is a checkpoint of another run; going back to an earlier one" in said
    assert all(torch.equal(x, weights_of(whole)[name]) for name, x in weights_of(cut).items())


def test_a_checkpoint_beyond_that_is_damaged_is_passed_over(cut: Path, whole: Path) -> None:
    checkpoint_path(cut, 24).write_bytes(b"nothing")
    warnings: list[str] = []
    assert replay(cut, warn=warnings.append).step == 16
    assert len(warnings) == 2
    with pytest.raises(CheckpointError):
        replay(cut, 24)
    assert main(["--resume", str(cut)]) == 0
    assert all(torch.equal(x, weights_of(whole)[name]) for name, x in weights_of(cut).items())


def test_the_checkpoint_says_of_which_run_it_is(whole: Path) -> None:
    digest = folder.config_digest((whole / "config.json").read_text())
    assert {load_checkpoint(checkpoint_path(whole, step)).run for step in checkpoint_steps(whole)} == {digest}
