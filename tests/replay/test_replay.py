"""`python -m zo_kernels.replay` and --fork: any step again, bit for bit."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.crashes import finish, runs_alike
from tests.train.runs import SMALL, metrics_of, weights_of
from zo_kernels.errors import JournalError
from zo_kernels.replay import replay
from zo_kernels.replay.__main__ import main as replay_main
from zo_kernels.run.folder import checkpoint_path, checkpoint_steps
from zo_kernels.run.journal import Journal
from zo_kernels.train.__main__ import main
from zo_kernels.train.loop import _Loop

RUN = [*SMALL, "--steps", "30", "--checkpoint-every", "8", "--keep-checkpoints", "2", "--validate-every", "10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A run, and the weights it had after each of its steps."""
    saved: list[dict[str, torch.Tensor]] = []
    patch = pytest.MonkeyPatch()
    scores_after = _Loop._scores_after

    def saving(self: _Loop, done: int) -> object:
        saved.append({name: x.clone() for name, x in self._run.model.state_dict().items()})
        return scores_after(self, done)

    patch.setattr(_Loop, "_scores_after", saving)
    out = tmp_path_factory.mktemp("replayed") / "run"
    assert main([*RUN, "--transforms", "momentum:0.5:3", "--weight-decay", "0.1", "--out", str(out)]) == 0
    patch.undo()
    assert len(saved) == 31
    return out, saved


def test_ten_random_steps(run: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path) -> None:
    out, saved = run
    for step in random.Random(0).sample(range(31), 10):
        file = tmp_path / f"{step}.safetensors"
        assert replay_main([str(out), "--step", str(step), "--out", str(file)]) == 0
        found = load_file(file)
        if step == 0:  # the first step rounds the initial parameters to the grid
            assert all(torch.equal(found[name], x) for name, x in saved[0].items())
        assert found.keys() == saved[step].keys()
        assert all(torch.equal(found[name], x) for name, x in saved[step].items()), step


def test_it_begins_at_the_nearest_checkpoint(
    run: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run
    assert checkpoint_steps(out) == [0, 24, 30]
    assert [replay(out, step).replayed for step in (23, 24, 25, 30)] == [23, 0, 1, 0]
    file = tmp_path / "w.safetensors"
    assert replay_main([str(out), "--step", "27", "--out", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("step 27: 3 steps replayed from a checkpoint in ")
    assert str(file) in said


def test_without_a_step_it_is_the_last(run: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    out, saved = run
    assert all(torch.equal(replay(out).weights[name], x) for name, x in saved[-1].items())


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main([*RUN, "--steps", "12", "--lr-decay", "1", "--out", str(whole)]) == 0
    assert finish([*RUN, "--lr-decay", "1", "--out", str(out)], "row written", 11) == -9
    weights = replay(out).weights  # the row of step 11 was written: it counts
    assert all(torch.equal(weights[name], x) for name, x in weights_of(whole).items())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["{run}", "--step", "31", "--out", "{tmp}/w"], "{run} has steps 0 to 30, not 31"),
        (["{run}", "--step", "-1", "--out", "{tmp}/w"], "{run} has steps 0 to 30, not -1"),
        (["{tmp}/nowhere", "--out", "{tmp}/w"], "there is no run folder {tmp}/nowhere"),
        (["{run}", "--out", "{run}/config.json"], "{run}/config.json exists and is not overwritten"),
        (["{run}", "--out", "{tmp}/no/w"], "can't write {tmp}/no/w: there is no folder {tmp}/no"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str],
    sentence: str,
    run: tuple[Path, list[dict[str, torch.Tensor]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replay_main([flag.format(run=run[0], tmp=tmp_path) for flag in flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: " + sentence.format(run=run[0], tmp=tmp_path))
    assert printed.err.count("\n") == 1


def test_back_propagation_has_its_checkpoints_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--solver", "bptt", "--lr", "0.01", "--out", str(out)]) == 0
    assert replay_main([str(out), "--step", "24", "--out", str(tmp_path / "w")]) == 0
    capsys.readouterr()
    assert replay_main([str(out), "--step", "25", "--out", str(tmp_path / "v")]) == 2
    assert "the journal of --solver bptt holds no gradients, and the nearest checkpoint is that of step 24" in (
        capsys.readouterr().err
    )


def test_a_fork_with_the_same_flags_is_the_same_run(
    run: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    out, _ = run
    fork = tmp_path / "fork"
    assert main(["--fork", str(out), "--fork-step", "17", "--out", str(fork)]) == 0
    assert runs_alike(fork, out)
    assert [line["step"] for line in metrics_of(fork)] == list(range(17, 31))
    weights = replay(fork, 20).weights
    assert all(torch.equal(weights[name], x) for name, x in replay(out, 20).weights.items())


def test_a_fork_may_have_other_flags(run: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path) -> None:
    out, saved = run
    fork = tmp_path / "fork"
    flags = ["--lr", "0.1", "--steps", "40", "--probes", "5", "--seed", "9", "--eps", "0.25", "--weight-decay", "0"]
    assert main(["--fork", str(out), *flags, "--out", str(fork)]) == 0
    assert all(torch.equal(replay(fork, 30).weights[name], x) for name, x in saved[30].items())
    with Journal.open(fork / "journal.sqlite") as journal:
        rows = list(journal.rows())
    assert [row.step for row in rows] == list(range(30, 40))
    assert {(row.seed, row.eps, len(row.coeffs)) for row in rows} == {(9, 0.25, 5)}
    assert rows[0].lr == pytest.approx(0.1 * (1 - 0.95 * 30 / 40))


def test_a_fork_that_dies_goes_on(run: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path) -> None:
    out, _ = run
    whole = tmp_path / "whole"
    flags = ["--fork", str(out), "--fork-step", "20", "--lr", "0.1"]
    assert main([*flags, "--out", str(whole)]) == 0
    for moment, number in (("checkpoint not begun", 0), ("row written", 3)):
        fork = tmp_path / moment
        assert finish([*flags, "--out", str(fork)], moment, number) == -9
        assert finish(["--resume", str(fork)]) == 0
        assert runs_alike(fork, whole)


def test_a_fork_to_other_transforms_takes_the_parameters(
    run: tuple[Path, list[dict[str, torch.Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, saved = run
    fork = tmp_path / "fork"
    flags = ["--fork", str(out), "--fork-step", "20", "--dense", "adam", "--lr", "0.01"]
    assert main([*flags, "--out", str(fork)]) == 0
    assert "warning: the fork takes only the parameters of" in capsys.readouterr().out
    assert all(torch.equal(replay(fork, 20).weights[name], x) for name, x in saved[20].items())
    with Journal.open(fork / "journal.sqlite") as journal:
        assert (journal.first_step, journal.next_step) == (20, 30)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--fork", "{run}"], "the fork begins at step 30 of {run}, but --steps is 30: raise it"),
        (["--fork", "{run}", "--fork-step", "99", "--steps", "100"], "{run} has steps 0 to 30, not 99"),
        (["--fork", "{run}", "--fork-step", "3", "--hidden-size", "16"], "the model of {run} has other sizes"),
        (["--fork", "{tmp}/nowhere"], "there is no run folder {tmp}/nowhere"),
        (["--fork-step", "3"], "--fork-step needs --fork"),
    ],
)
def test_bad_forks_are_one_sentence(
    flags: list[str],
    sentence: str,
    run: tuple[Path, list[dict[str, torch.Tensor]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [flag.format(run=run[0], tmp=tmp_path) for flag in flags]
    assert main([*arguments, "--out", str(tmp_path / "fork")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + sentence.format(run=run[0], tmp=tmp_path))
    assert error.count("\n") == 1
    assert not (tmp_path / "fork").exists()


def test_a_journal_that_was_cut_is_not_replayed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--steps", "9", "--out", str(out)]) == 0
    for step in checkpoint_steps(out)[1:]:
        checkpoint_path(out, step).unlink()
    with Journal.open(out / "journal.sqlite") as journal:
        journal._connection.execute("DELETE FROM steps WHERE step = 4")
    with pytest.raises(JournalError, match="the row of step 4 is missing"):
        replay(out, 9)
    assert replay(out, 4).step == 4
