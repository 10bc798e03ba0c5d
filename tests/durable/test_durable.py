"""A durable loop: killed at any moment and started again, it ends with the bits of one that was never killed."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.durable.loops import BUILDS, STEPS, bits_of, finish, start, train
from tests.train.runs import FILES, files_of, metrics_of
from zo_kernels.errors import UsageError
from zo_kernels.plot import plot_runs
from zo_kernels.replay import replay
from zo_kernels.run.folder import checkpoint_steps
from zo_kernels.run.journal import Journal

DEATHS = {
    "groups": [("row written", 8), ("checkpoint unnamed", 1), ("scores not written", 1)],
    "shadow": [("row not written", 13), ("checkpoint not begun", 2)],
    "adapter": [("folder made", 0), ("checkpoint not begun", 0), ("row written", 4), ("scores written", 3)],
    "populated": [("row written", 0), ("line not written", 12)],
    "micro": [("row written", 11), ("weights not written", 0)],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each loop that nothing stopped, in this process with the threads of the others."""
    folder, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)
    for name in BUILDS:
        train(folder / name, name)
    torch.set_num_threads(threads)
    return {name: folder / name for name in BUILDS}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # which is put back after each test


@pytest.mark.parametrize("name", BUILDS)
def test_a_killed_loop_ends_with_the_same_bits(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for moment, number in DEATHS[name]:
        assert finish(run, name, moment, number) == -signal.SIGKILL
    train(run, name)
    assert bits_of(run) == bits_of(whole[name])
    assert files_of(run) == FILES - {"vocabulary.json"}
    assert checkpoint_steps(run) == [0, 20, 23]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_ten_kills_at_random_moments(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    run, chance, killed = tmp_path / "run", random.Random(name), 0
    for _ in range(10):
        process = start(run, name)
        time.sleep(chance.uniform(0.01, 0.2))  # a whole run may take a quarter of a second
        killed += process.is_alive()
        process.kill()
        process.join()
    train(run, name)
    assert killed > 2
    assert bits_of(run) == bits_of(whole[name])


def test_it_is_the_loop_without_a_run(whole: dict[str, Path]) -> None:
    """Recording changes nothing: the bits are those of the optimizer alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, opt = BUILDS["populated"]()
    torch.manual_seed(5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)
    for _ in range(STEPS):
        tokens, targets = torch.randint(7, (2, 3, 5))
        opt.step(model.population(tokens, targets))
        scheduler.step()
    found = load_file(whole["populated"] / "weights.safetensors")
    assert all(torch.equal(found[name], x) for name, x in model.state_dict().items())


@pytest.mark.parametrize("name", BUILDS)
def test_any_step_is_replayed(name: str, tmp_path: Path) -> None:
    saved = {}

    def seen(run: object, model: torch.nn.Module) -> None:
        saved[len(saved) + 1] = {key: x.clone() for key, x in model.state_dict().items()}

    train(tmp_path / "run", name, seen=seen)
    for step in (3, 20, 22, 23):
        found = replay(tmp_path / "run", step, allow_import=True)
        assert found.replayed == {3: 3, 20: 0, 22: 2, 23: 0}[step]
        assert found.weights.keys() == saved[step].keys()
        assert all(torch.equal(found.weights[key], x) for key, x in saved[step].items()), step


def test_replay_imports_only_what_is_allowed(whole: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--allow-import"):
        replay(whole["groups"], 3)
    assert replay(whole["groups"], 20).replayed == 0  # a checkpoint needs no code
    train(tmp_path / "run", "groups", build=None)
    with pytest.raises(UsageError, match=r"only its checkpoints can be read, those of steps 0, 20, 23: give .* build="):
        replay(tmp_path / "run", 3, allow_import=True)


def test_a_picture(whole: dict[str, Path], tmp_path: Path) -> None:
    finish(tmp_path / "killed", "groups", "row written", 8)
    runs = [whole["groups"], whole["micro"], tmp_path / "killed"]
    plot_runs(runs, tmp_path / "a.png", csv=tmp_path / "a.csv", sets=["train", "validation"])
    lines = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()]
    assert [(line[0], line[2]) for line in lines if line[1] == "validation" and line[0] != "micro"] == [
        *(("groups", step) for step in ("0", "6", "12", "18")),
        *(("killed", step) for step in ("0", "6")),
    ]
    last = metrics_of(whole["groups"])[-1]
    assert (last["step"], last["forwards"]) == (STEPS, 6 * STEPS)
    assert "tokens" not in last
    assert last["sum_loss"] == pytest.approx(sum(line.get("train_loss", 0) for line in metrics_of(whole["groups"])))
    assert "forwards" not in metrics_of(whole["micro"])[-1]


def test_more_steps(whole: dict[str, Path], tmp_path: Path) -> None:
    """A run that has ended may go on, and loses nothing if there is nothing to do."""
    for steps in (9, 9, 4, STEPS):
        seen = []
        train(tmp_path / "run", "groups", steps=steps, seen=lambda run, _, seen=seen: seen.append(run.replaying))
        assert len(seen) == {4: 0, 9: 9}.get(steps, 14) or steps == 9
    kept = (tmp_path / "run" / "weights.safetensors").read_bytes()
    assert kept == (whole["groups"] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_exception_in_a_loss_ends_the_run_before_the_step(
    error: type[BaseException], whole: dict[str, Path], tmp_path: Path
) -> None:
    def stop(step: int) -> None:
        if step == 8:
            raise error

    with pytest.raises(error):
        train(tmp_path / "run", "groups", within=stop)
    with Journal.open(tmp_path / "run" / "journal.sqlite", writable=False) as journal:
        assert journal.next_step == 8
    assert (error is SystemExit) == ("weights.safetensors" not in files_of(tmp_path / "run"))
    train(tmp_path / "run", "groups")
    assert bits_of(tmp_path / "run") == bits_of(whole["groups"])
