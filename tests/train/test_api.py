"""Runs from Python: the same files, bits and refusals as from the command line."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path

import pytest
import torch

import zo_kernels as zo
from tests.names import name_of
from tests.train.runs import FILES, SMALL, files_of, metrics_of, weights_of
from zo_kernels.errors import UsageError
from zo_kernels.models import LSTM, ModelPopulation
from zo_kernels.run.folder import checkpoint_steps
from zo_kernels.tasks import TASKS
from zo_kernels.train import TrainConfig, TrainResult, default_config, run
from zo_kernels.train.__main__ import main
from zo_kernels.train.cli import parse
from zo_kernels.train.config import as_json, read_config
from zo_kernels.train.defaults import DEFAULTS

SIZES = {"embed_dim": 4, "hidden_size": 8, "batch_size": 4, "probes": 3, "steps": 5, "device": "cpu"}
"""SMALL, as fields."""


def test_it_runs_what_the_command_line_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = zo.train.run(zo.train.default_config("copy", **SIZES, validate_every=2, out=tmp_path / "api"))
    printed = capsys.readouterr()
    assert main([*SMALL, "--validate-every", "2", "--out", str(tmp_path / "cli")]) == 0
    assert (tmp_path / "api" / "weights.safetensors").read_bytes() == (
        tmp_path / "cli" / "weights.safetensors"
    ).read_bytes()
    assert files_of(tmp_path / "api") == FILES

    def without_rates(text: str) -> list[str]:
        lines = text.replace(str(tmp_path / "cli"), str(tmp_path / "api")).splitlines()
        return [line.split(" probes/s")[0].rsplit("  ", 1)[0] for line in lines if " steps in " not in line]

    assert printed.err == ""
    assert without_rates(printed.out) == without_rates(capsys.readouterr().out)

    assert isinstance(result, TrainResult)
    assert result.folder == tmp_path / "api"
    assert result.metrics == metrics_of(result.folder)
    assert (result.interrupted, result.failure) == (False, None)
    assert isinstance(result.model, LSTM)
    weights = weights_of(result.folder)
    assert all(torch.equal(p, weights[name]) for name, p in result.model.named_parameters())
    last = result.metrics[-1]
    assert result.final == {name: last[name] for name in last if name.endswith(("_loss", "_accuracy"))}
    assert set(result.final) == {
        *("train_loss", "validation_loss", "validation_accuracy", "longer_loss", "longer_accuracy"),
    }
    assert read_config(result.folder) == result.config
    assert repr(result) == (
        f"TrainResult(folder={result.folder!r}, final={result.final}, interrupted=False, failure=None)"
    )


def test_final_scores_are_the_last_that_were_measured() -> None:
    lines: list[dict[str, float | None]] = [
        {"step": 0, "validation_loss": 2.0, "validation_accuracy": 0.25},
        {"step": 1, "train_loss": 1.5, "lr": 0.1},
        {"step": 2, "train_loss": None, "validation_loss": 1.0},
    ]
    result = TrainResult(default_config(), Path(), LSTM(5, 4, 8), lines)
    assert result.final == {"train_loss": 1.5, "validation_loss": 1.0, "validation_accuracy": 0.25}


def test_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(default_config(**SIZES, out=tmp_path / "run"), quiet=True)
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_those_of_the_command_line(task: str) -> None:
    data = {"data": "somewhere"} if task in ("text", "ptb", "owt", "pairs", "series") else {}
    data |= {"input": "a", "target": "b"} if task in ("pairs", "series") else {}
    flags = [word for name, value in data.items() for word in (f"--{name}", value)]
    assert default_config(task, **data) == parse(["--task", task, *flags])
    assert default_config(task, preset="dnc-300k", **data) == parse(["--task", task, "--preset", "dnc-300k", *flags])
    assert default_config(task, lr="search", **data) == parse(["--task", task, "--lr", "search", *flags])


def test_fields_are_flags(tmp_path: Path) -> None:
    changes = {"probes": 7, "lr": 0.5, "log": ["tensorboard"], "out": str(tmp_path), "estimator": "fd"}
    flags = ["--probes", "7", "--lr", "0.5", "--log", "tensorboard", "--out", str(tmp_path), "--estimator", "fd"]
    config = default_config("sort", **changes)
    assert config == parse(["--task", "sort", *flags])
    assert (config.out, config.log) == (tmp_path, ("tensorboard",))
    assert {field.name for field in fields(config)} == asdict(config).keys()
    assert TrainConfig(**asdict(DEFAULTS["sort"])) == DEFAULTS["sort"]


def test_a_config_is_stored_and_read(tmp_path: Path) -> None:
    config = default_config("sort", log=("tensorboard",), out=tmp_path, fork=None, micro_batch_size=3)
    (tmp_path / "config.json").write_text(as_json(config))
    assert read_config(tmp_path) == config
    assert json.loads(as_json(config)).keys() == json.loads(as_json(default_config())).keys()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"steps": "many"}, "steps must be of type int, not 'many'"),
        ({"steps": 5.0}, "steps must be of type int, not 5.0"),
        ({"steps": True}, "steps must be of type int, not True"),
        ({"lr": "fast"}, "lr must be of type float or int, not 'fast'"),
        ({"lr": None}, "lr must be of type float or int, not None"),
        ({"threads": 1.5}, "threads must be of type int or None, not 1.5"),
        ({"balance": 1}, "balance must be of type bool, not 1"),
        ({"out": 3}, "out must be of type Path or None, not 3"),
        ({"log": "tensorboard"}, "log must be of type tuple, not 'tensorboard'"),
        ({"log": ("magic",)}, "unknown log 'magic'"),
        ({"task": "chess"}, "unknown task 'chess': choose one of copy, "),
        ({"estimator": "magic"}, "unknown estimator 'magic': choose one of cd, "),
        ({"estimator": zo.estimators.SPSA2()}, "estimator must be of type str, not "),
        ({"transforms": zo.transforms.clip_norm(1.0)}, "transforms must be of type str, not "),
        ({"dense": zo.optim.Adam()}, "dense must be of type str or None, not "),
        ({"max_repeats": 2}, "--max-repeats does not apply to the task copy"),
        ({"resume": "nowhere"}, "there is no run folder nowhere"),
        ({"seed": -1}, "--seed must be in [0, 2^64), not -1"),
        ({"transforms": "magic"}, "unknown transform 'magic'"),
        ({"hidden_size": 10, "num_heads": 4}, "hidden_size 10 is not divisible by num_heads 4"),
    ],
    ids=name_of,
)
def test_invalid_fields_are_refused(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    config = replace(default_config(**SIZES, out=tmp_path / "run"), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as error:
        run(config)
    assert str(error.value).startswith(sentence)
    assert not (tmp_path / "run").exists()


def test_default_config_refuses() -> None:
    with pytest.raises(UsageError, match=r"^unknown task 'chess'"):
        default_config("chess")
    with pytest.raises(UsageError, match=r"^unknown preset 'magic'"):
        default_config(preset="magic")
    with pytest.raises(UsageError, match=r"^TrainConfig has no field 'num_probes'"):
        default_config(num_probes=3)
    with pytest.raises(UsageError, match=r"^there is no run folder nowhere"):
        default_config(resume="nowhere")


def test_an_object_is_answered_with_names(tmp_path: Path) -> None:
    config = default_config(**SIZES, estimator=zo.estimators.SPSA2(), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"\(a run is stored as text: give a name\)$"):
        run(config)


def test_a_registered_estimator_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(zo.estimators.CentralDifference):
        pass

    monkeypatch.setitem(zo.estimators.ESTIMATORS, "mine", Mine)
    results = [run(default_config(**SIZES, estimator=name, out=tmp_path / name), quiet=True) for name in ("mine", "cd")]
    assert results[0].final == results[1].final


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends a signal in the middle of the forward passes of a step."""
    population_loss, calls = ModelPopulation.population_loss, count()

    def population(self: ModelPopulation, seeds: torch.Tensor, eps: float) -> torch.Tensor:
        if next(calls) == step:
            signal.raise_signal(number)
        return population_loss(self, seeds, eps)

    monkeypatch.setattr(ModelPopulation, "population_loss", population)


def test_ctrl_c_gives_the_result_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(default_config(**SIZES, out=tmp_path / "whole"), quiet=True)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGINT)
        result = run(default_config(**SIZES, out=tmp_path / "run"), quiet=True)
    assert (result.interrupted, result.failure) == (True, None)
    assert [line["step"] for line in result.metrics] == [0, 1, 2, 3]
    assert files_of(result.folder) == FILES
    resumed = run(default_config(resume=result.folder), quiet=True)
    assert resumed.folder == result.folder
    assert resumed.final == whole.final
    assert weights_of(resumed.folder).keys() == weights_of(whole.folder).keys()
    assert all(torch.equal(x, weights_of(whole.folder)[name]) for name, x in weights_of(resumed.folder).items())


def test_sigterm_is_passed_on_when_the_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(files_of(tmp_path / "run")))
    try:
        interrupt_at(monkeypatch, 2, signal.SIGTERM)
        result = run(default_config(**SIZES, out=tmp_path / "run"), quiet=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.interrupted
    assert seen == [FILES]


def test_ctrl_c_before_there_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 2, signal.SIGINT)  # of the first trial
    with pytest.raises(KeyboardInterrupt):
        run(default_config(**SIZES, lr="search", out=tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_during_the_search_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(monkeypatch, 2, signal.SIGINT)
    assert main([*SMALL, "--lr", "search", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "interrupted before the run began\n"


def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    population_loss, calls = ModelPopulation.population_loss, count()
    monkeypatch.setattr(
        ModelPopulation,
        "population_loss",
        lambda self, seeds, eps: population_loss(self, seeds, eps) * (math.nan if next(calls) == 2 else 1.0),
    )
    result = run(default_config(**SIZES, out=tmp_path / "run"), quiet=True)
    assert result.failure is not None
    assert result.failure.startswith("the losses of all 3 probes are NaN or infinite")
    assert not result.interrupted
    assert [line["step"] for line in result.metrics] == [0, 1, 2]
    assert files_of(result.folder) == FILES


def test_a_searched_learning_rate_is_in_the_config(tmp_path: Path) -> None:
    result = run(default_config(**SIZES, lr="search", out=tmp_path / "run"), quiet=True)
    assert not result.config.lr_search
    best = min(json.loads((result.folder / "lr_search.json").read_text()), key=lambda pair: pair[1])[0]
    assert result.config.lr == float(f"{best / 2:.3g}")


def test_the_device_that_auto_chose_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run is resumed with the same bits on a machine that has a GPU too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = {**SIZES, "device": "auto"}
    result = run(default_config(**changes, out=tmp_path / "run"), quiet=True)
    assert result.config.device == "cpu"
    assert json.loads((result.folder / "config.json").read_text())["device"] == "cpu"
    assert default_config(resume=result.folder).device == "cpu"
    for device in ("auto", "cpu"):
        assert run(default_config(resume=result.folder, device=device), quiet=True).final == result.final


def test_a_run_of_another_device_is_continued_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    config = as_json(default_config(**{**SIZES, "device": "cuda", "out": out}))
    # A run that would have been on cuda: its journal begins with the digest of such a config.
    monkeypatch.setattr("zo_kernels.train.begin.as_json", lambda _: config)
    assert main([*SMALL, "--checkpoint-every", "3", "--out", str(out)]) == 0
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    weights = (out / "weights.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["--resume", str(out)]) == 2
    assert "the device cuda is not available" in capsys.readouterr().err
    assert main(["--resume", str(out), "--device", "cpu"]) == 0
    assert (out / "weights.safetensors").read_bytes() == weights
    for step in (2, 5):  # exact on any device
        assert zo.replay.replay(out, step).weights.keys() == weights_of(out).keys()
    assert all(torch.equal(x, weights_of(out)[name]) for name, x in zo.replay.replay(out).weights.items())


def test_resume_and_fork_start_from_the_values_of_the_run(tmp_path: Path) -> None:
    result = run(default_config(**SIZES, out=tmp_path / "run"), quiet=True)
    with pytest.raises(UsageError, match=r"^--steps is 5 in .*, and a resumed run keeps it"):
        run(default_config(resume=result.folder, steps=6), quiet=True)
    forked = run(default_config(fork=result.folder, fork_step=2, steps=6, checkpoint_every=2, out=tmp_path / "fork"))
    assert checkpoint_steps(forked.folder) == [2, 4, 6]
    assert forked.metrics[0]["step"] == 2


def test_imports_are_made_when_they_are_needed() -> None:
    code = """
import sys, zo_kernels as zo
assert not {"tyro", "rich", "matplotlib"} & sys.modules.keys()
import zo_kernels.train
assert not {"tyro", "rich", "matplotlib"} & sys.modules.keys()
zo.train.default_config()
assert "matplotlib" not in sys.modules
zo.train.run, zo.train.TrainResult, zo.train.TrainConfig
assert set(zo.train.__all__) == {"TrainConfig", "TrainResult", "default_config", "run"}
assert not hasattr(zo.train, "nothing")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
