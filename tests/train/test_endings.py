"""How a run ends early: losses that are not finite, Ctrl-C; with the kernel, and loss by loss with the reference."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from tests.train.runs import FILES, SMALL, files_of, metrics_of, weights_of
from zo_kernels.models import LSTM, ModelPopulation
from zo_kernels.train.__main__ import main

LOSSES = 2 * 3
"""Of a step of a SMALL run."""

each_path = pytest.mark.parametrize("backend", ["cpu", "reference"])


def change_losses(monkeypatch: pytest.MonkeyPatch, backend: str, changed: Callable[[int, float], float]) -> None:
    """Makes the run's losses changed(number, loss), numbered from 0 in the order +eps, -eps of each probe.

    The CPU backend has all losses of a step from one call; the reference backend calls the model's loss for each.
    """
    number = count()
    if backend == "reference":
        loss = LSTM.loss
        monkeypatch.setattr(
            LSTM, "loss", lambda *args: torch.tensor(changed(next(number), float(loss(*args))), dtype=torch.float64)
        )
        return
    population_loss = ModelPopulation.population_loss

    def population(self: ModelPopulation, seeds: torch.Tensor, eps: float) -> torch.Tensor:
        losses = population_loss(self, seeds, eps)
        assert losses.shape == (3, 2)
        return losses.new_tensor([[changed(next(number), loss) for loss in pair] for pair in losses.tolist()])

    monkeypatch.setattr(ModelPopulation, "population_loss", population)


@each_path
def test_probes_without_a_finite_loss_are_counted(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_losses(monkeypatch, backend, lambda number, loss: math.nan if number in (1, 6, 7) else loss)
    assert main([*SMALL, "--backend", backend, "--out", str(tmp_path / "run")]) == 0
    assert [line["skipped_probes"] for line in metrics_of(tmp_path / "run")[1:]] == [1, 1, 0, 0, 0]
    assert "2 of 15 probes left out (loss not finite)" in capsys.readouterr().out


@each_path
def test_divergence_ends_the_run_with_its_files(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, "--backend", backend, "--lr-decay", "1"]
    assert main([*command, "--steps", "2", "--out", str(tmp_path / "whole")]) == 0
    change_losses(monkeypatch, backend, lambda number, loss: math.nan if number >= 2 * LOSSES else loss)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the losses of all 3 probes are NaN or infinite")
    assert error.count("\n") == 1
    assert files_of(tmp_path / "run") == FILES
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2]
    after_two_steps = (tmp_path / "whole" / "weights.safetensors").read_bytes()
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == after_two_steps


@each_path
def test_ctrl_c_in_the_middle_of_a_step_leaves_the_steps_before(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, "--backend", backend, "--lr-decay", "1"]
    assert main([*command, "--steps", "3", "--out", str(tmp_path / "whole")]) == 0

    def interrupted(number: int, loss: float) -> float:
        if number == 3 * LOSSES + 3:  # of the fourth step's second probe, at -eps
            signal.raise_signal(signal.SIGINT)
        return loss

    change_losses(monkeypatch, backend, interrupted)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "run")]) == 130
    error = capsys.readouterr().err
    assert error == "interrupted: the weights are those of the last whole step, all files are written\n"
    assert files_of(tmp_path / "run") == FILES
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2, 3]
    whole, run = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(weight, run[name]) for name, weight in whole.items())


def test_leaving_the_grid_names_the_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--lr", "1e6", "--eps", "0.1", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "embedding" in error
    assert not (tmp_path / "run").exists()  # it took no step


@pytest.mark.slow
def test_ctrl_c_ends_the_run_with_whole_weights(tmp_path: Path) -> None:
    """Wherever it arrives: a real signal to a process that has the kernel."""
    endless = ["--steps", "1000000", "--lr-decay", "1", "--validate-every", "1000000"]
    command = [sys.executable, "-m", "zo_kernels.train", *SMALL, *endless, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") > 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == "interrupted: the weights are those of the last whole step, all files are written\n"
    assert files_of(tmp_path / "run") == FILES

    steps = metrics_of(tmp_path / "run")[-1]["step"]
    arguments = [*SMALL, *endless, "--steps", str(steps), "--out", str(tmp_path / "whole")]
    assert main(arguments) == 0
    whole, interrupted = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(weight, interrupted[name]) for name, weight in whole.items())
