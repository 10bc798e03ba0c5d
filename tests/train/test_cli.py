"""`python -m zo_kernels.train`: the files it leaves, its exit codes, and what it says when something is wrong."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zo_kernels.models import LSTM
from zo_kernels.tasks import Copy
from zo_kernels.train.__main__ import main

SMALL = ["--embed-dim", "4", "--hidden-size", "8", "--batch-size", "4", "--probes", "3", "--steps", "5"]
FILES = {"config.json", "metrics.jsonl", "weights.safetensors", "loss.png"}


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("to be or not to be, that is the question\n" * 20)
    return path


def test_copy_run_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*SMALL, "--validate-every", "2", "--num-heads", "2", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == FILES

    config = json.loads((out / "config.json").read_text())
    assert config["task"] == "copy"
    assert (config["steps"], config["num_heads"], config["hidden_size"], config["out"]) == (5, 2, 8, str(out))

    lines = metrics_of(out)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    validation = {"validation_loss", "validation_accuracy", "longer_loss", "longer_accuracy"}
    assert [line["step"] for line in lines if validation <= line.keys()] == [0, 2, 4, 5]
    assert all({"train_loss", "lr", "skipped_probes", "seconds"} <= line.keys() for line in lines[1:])
    assert lines[0]["validation_loss"] == pytest.approx(math.log(5), rel=0.2)
    assert [line["lr"] for line in lines[1:]] == pytest.approx([0.3 * (1 - 0.95 * k / 5) for k in range(5)])

    weights = load_file(out / "weights.safetensors")
    assert {name: list(weight.shape) for name, weight in weights.items()} == {
        name: list(parameter.shape) for name, parameter in LSTM(5, 4, 8, 2).named_parameters()
    }
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{lines[-1]['validation_loss']:.3f}" in printed.out
    assert "5 steps in" in printed.out
    assert "0 of 15 probes left out" in printed.out


def test_text_run_reports_the_test_set_once(tmp_path: Path, book: Path) -> None:
    out = tmp_path / "run"
    assert main(["--task", "text", "--data", str(book), "--context-length", "8", *SMALL, "--out", str(out)]) == 0
    lines = metrics_of(out)
    assert [line["step"] for line in lines if "test_loss" in line] == [5]
    vocab_size = len(set(book.read_text()))
    assert load_file(out / "weights.safetensors")["output_bias"].numel() == vocab_size
    assert lines[0]["validation_loss"] == pytest.approx(math.log(vocab_size), rel=0.2)


def test_it_learns(tmp_path: Path) -> None:
    out = tmp_path / "run"
    task = ["--alphabet-size", "2", "--max-length", "1", "--hidden-size", "8", "--embed-dim", "4", "--batch-size", "16"]
    assert main([*task, "--probes", "16", "--steps", "40", "--validate-every", "40", "--out", str(out)]) == 0
    first, last = metrics_of(out)[0], metrics_of(out)[-1]
    assert first["validation_accuracy"] < 0.8
    assert last["validation_accuracy"] == 1
    assert last["validation_loss"] < 0.5 < math.log(2) < first["validation_loss"]


def test_run_is_a_function_of_its_config(tmp_path: Path) -> None:
    def weights(name: str, *arguments: str) -> bytes:
        assert main([*SMALL, *arguments, "--out", str(tmp_path / name)]) == 0
        return (tmp_path / name / "weights.safetensors").read_bytes()

    torch.manual_seed(1)
    first = weights("first")
    torch.manual_seed(2)
    assert weights("second") == first
    assert weights("other seed", "--seed", str(2**64 - 1)) != first
    assert weights("reference", "--backend", "reference") == first


def test_torch_threads_are_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert main([*SMALL, "--threads", str(before + 1), "--out", str(tmp_path / "run")]) == 0
    assert torch.get_num_threads() == before


def test_default_folders_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert main([*SMALL, "--steps", "1"]) == 0
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 3
    assert all(re.fullmatch(r"copy-\d{8}-\d{6}(-\d+)?", folder.name) for folder in folders)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "sort"], "unknown task 'sort': choose one of copy, text"),
        (["--task", "text"], "the task text needs --data"),
        (["--task", "text", "--data", "{tmp}/nowhere.txt"], "cannot read {tmp}/nowhere.txt: No such file or directory"),
        (["--task", "text", "--data", "{tmp}"], "cannot read {tmp}: Is a directory"),
        (
            ["--task", "text", "--data", "{tmp}/book.txt", "--context-length", "50"],
            "{tmp}/book.txt has 820 characters, but context_length 50 needs at least 1020: "
            "give a longer file or a shorter context",
        ),
        (["--data", "{tmp}/book.txt"], "--data does not apply to the task copy"),
        (["--hidden-size", "10", "--num-heads", "4"], "hidden_size 10 is not divisible by num_heads 4"),
        (["--embed-dim", "0"], "embed_dim must be a positive integer, not 0"),
        (["--lr", "0"], "lr must be positive and finite, not 0.0"),
        (["--lr", "inf"], "lr must be positive and finite, not inf"),
        (["--eps", "-1"], "eps must be positive and finite, not -1.0"),
        (["--eps", "nan"], "eps must be positive and finite, not nan"),
        (["--eps", "1e-9"], "eps 1e-09 is below half the grid's spacing 9.53674e-07: use a larger eps"),
        (["--weight-decay", "-1"], "weight_decay must be in [0, 1/lr], not -1.0"),
        (["--probes", "0"], "probes must be a positive integer, not 0"),
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--max-length", "0"], "max_length must be at least 1, not 0"),
        (["--alphabet-size", "1"], "alphabet_size must be at least 2, not 1"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--validate-every", "0"], "--validate-every must be at least 1, not 0"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--lr-decay", "1.5"], "--lr-decay must be above 0 and at most 1, not 1.5"),
        (["--seed", "-1"], "--seed must be in [0, 2^64), not -1"),
        (["--device", "tpu"], "unknown device 'tpu': choose cpu or cuda"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--out", str(out), *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: " + sentence.format(tmp=tmp_path))
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


def test_missing_gpu_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*SMALL, "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: the device cuda is not available: torch finds no usable NVIDIA GPU here\n"


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--no-such-flag"], ["--lr"], ["--task"]])
def test_unparsable_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("existing", ["folder", "file"])
def test_nothing_is_overwritten(existing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    if existing == "folder":
        out.mkdir()
        (out / "precious").write_text("data")
    else:
        out.write_text("data")
    assert main([*SMALL, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert str(out) in printed.err
    assert [path.name for path in tmp_path.rglob("*")] == (["run", "precious"] if existing == "folder" else ["run"])


def test_help_shows_every_flag_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--task", "text", "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    flags = (
        "task data embed-dim hidden-size num-heads batch-size context-length max-length probes lr eps steps seed out"
    )
    assert all(f"--{flag} " in shown for flag in [*flags.split(), "device", "backend"])
    assert shown.count("default: ") >= 20


def test_probes_without_a_finite_loss_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = iter(range(10**6))
    loss = LSTM.loss
    monkeypatch.setattr(LSTM, "loss", lambda *args: math.nan if next(calls) in (1, 6, 7) else loss(*args))
    assert main([*SMALL, "--out", str(tmp_path / "run")]) == 0
    assert [line["skipped_probes"] for line in metrics_of(tmp_path / "run")[1:]] == [1, 1, 0, 0, 0]
    assert "2 of 15 probes left out (loss not finite)" in capsys.readouterr().out


def test_divergence_ends_the_run_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--steps", "2", "--lr-decay", "1", "--out", str(tmp_path / "whole")]) == 0
    calls = iter(range(10**6))
    loss = LSTM.loss
    monkeypatch.setattr(LSTM, "loss", lambda *args: math.nan if next(calls) >= 2 * 6 else loss(*args))
    capsys.readouterr()
    assert main([*SMALL, "--lr-decay", "1", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2]
    after_two_steps = (tmp_path / "whole" / "weights.safetensors").read_bytes()
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == after_two_steps


def test_leaving_the_grid_names_the_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--lr", "1e6", "--eps", "0.1", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "embedding" in error
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_bugs_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Copy, step: int) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Copy, "batch", broken)
    with pytest.raises(ValueError, match="a bug"):
        main([*SMALL, "--out", str(tmp_path / "run")])


def test_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zo_kernels.train", *SMALL, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5/5  train" in done.stdout
    assert "\x1b" not in done.stdout  # plain lines: this is not a terminal
    bad = subprocess.run([*command, "--probes", "-3"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: probes must be a positive integer, not -3\n"


def test_ctrl_c_ends_the_run_with_whole_weights(tmp_path: Path) -> None:
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
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES

    steps = metrics_of(tmp_path / "run")[-1]["step"]
    arguments = [*SMALL, *endless, "--steps", str(steps), "--out", str(tmp_path / "whole")]
    assert main(arguments) == 0
    whole, interrupted = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weight, interrupted[name]) for name, weight in whole.items())
