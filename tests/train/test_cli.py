"""`python -m zo_kernels.train`: the files it leaves, and that they follow from the flags."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.runs import FILES, SMALL, TIMES, files_of, metrics_of, weights_of
from zo_kernels import _C
from zo_kernels.models import LSTM, MODELS
from zo_kernels.tasks import Copy
from zo_kernels.train.__main__ import main


def test_copy_run_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*SMALL, "--validate-every", "2", "--num-heads", "2", "--out", str(out)]) == 0
    assert files_of(out) == FILES

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

    weights = weights_of(out)
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
    assert weights_of(out)["output_bias"].numel() == vocab_size
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
    assert weights("threads", "--threads", "3") == first
    assert weights("other seed", "--seed", str(2**64 - 1)) != first


def assert_same_run(one: Path, other: Path) -> None:
    """Up to rounding: losses to float32's, and weights by that over eps and by steps of their grid."""
    for line, other_line in zip(metrics_of(one), metrics_of(other), strict=True):
        assert line.keys() == other_line.keys()
        for name in line.keys() - TIMES:
            assert line[name] == pytest.approx(other_line[name], abs=1e-4), name
    weights = weights_of(other)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_every_cell_runs_with_the_kernel_as_without(
    cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, "--model", cell, "--num-heads", "2"]
    for backend in ("cpu", "reference"):
        assert main([*command, "--backend", backend, "--out", str(tmp_path / backend)]) == 0
        printed = capsys.readouterr().out
        assert f"model   {MODELS[cell].__name__} of " in printed
        assert f"backend {backend}" in printed
    assert_same_run(tmp_path / "cpu", tmp_path / "reference")
    assert json.loads((tmp_path / "cpu" / "config.json").read_text())["model"] == cell
    assert {name: weight.shape for name, weight in weights_of(tmp_path / "cpu").items()} == {
        name: parameter.shape for name, parameter in MODELS[cell](5, 4, 8, 2).named_parameters()
    }
    start, end = MODELS[cell](5, 4, 8, 2, seed=0).state_dict(), weights_of(tmp_path / "cpu")
    assert max(float((end[name] - weight).abs().max()) for name, weight in start.items()) > 0.01


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.slow
def test_micro_batches_change_rounding_only(backend: str, size: int, tmp_path: Path) -> None:
    """Of four rows, of which the copy task scores different numbers of letters."""
    command = [*SMALL, "--backend", backend]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    assert main([*command, "--micro-batch-size", str(size), "--out", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["micro_batch_size"] == size


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_forward_pass_sees_more_than_a_micro_batch(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "population_nats" if backend == "cpu" else "loss"
    rows, method = [], getattr(LSTM, name)
    monkeypatch.setattr(
        LSTM,
        name,
        lambda self, tokens, *rest, **more: (rows.append(len(tokens)), method(self, tokens, *rest, **more))[1],
    )
    command = [*SMALL, "--backend", backend, "--micro-batch-size", "3", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert rows == [3, 1] * (1 if backend == "cpu" else 6)


def test_bfloat16_products(tmp_path: Path) -> None:
    if not _C.has_bfloat16():
        pytest.skip("this processor lacks AVX512_BF16")
    command = [*SMALL, "--hidden-size", "16", "--eps", "0.03125"]
    for precision in ("float32", "bfloat16"):
        assert main([*command, "--precision", precision, "--out", str(tmp_path / precision)]) == 0
    pairs = list(zip(metrics_of(tmp_path / "float32")[1:], metrics_of(tmp_path / "bfloat16")[1:], strict=True))
    assert all(one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-2) for one, other in pairs)
    assert all(one["train_loss"] != other["train_loss"] for one, other in pairs)


def test_vocabulary_has_a_character_for_each_token(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text('"Ein Käse",\n\tsagte sie \\ und 愛 ...\n' * 20, encoding="utf-8")
    for name, command in (("text", ["--task", "text", "--data", str(book)]), ("copy", ["--alphabet-size", "60"])):
        out = tmp_path / name
        assert main([*command, *SMALL, "--steps", "1", "--out", str(out)]) == 0
        symbols = json.loads((out / "vocabulary.json").read_text(encoding="utf-8"))
        assert all(isinstance(symbol, str) and len(symbol) == 1 for symbol in symbols)
        assert len(set(symbols)) == len(symbols) == len(weights_of(out)["output_bias"])
        if name == "text":
            assert symbols == sorted(set(book.read_text(encoding="utf-8")))
        else:
            assert (symbols[:4], symbols[-1]) == (["a", "b", "c", "d"], "|")


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
