"""Hostile values for every flag: each command line trains, or is refused in one sentence and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import random
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from zo_kernels.command_line import flag
from zo_kernels.train.__main__ import main
from zo_kernels.train.config import FIELD_TYPES, TrainConfig

TINY = ("--steps", "1", "--batch-size", "2", "--probes", "2", "--hidden-size", "4", "--embed-dim", "2")
"""As many flags as make a run of some milliseconds. The flag in question comes after them and wins."""

NUMBERS = (
    "0",
    "-1",
    "1e3",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "1" * 26,
    "-" + "1" * 26,
    "0x10",
    "",
    "ten",
)
NAMES = (
    "",
    " ",
    "no such",
    "..",
    "a" * 5000,
    "ü",
    "[/]",
    "[bold]x",
    "$\\frac$",
    "\udce4",
    "-",
    "None",
    "copy,",
    "x:y:z",
)
PATHS = ("", "no/such", "/dev/null", "/proc/version", "/dev/null/x", "a" * 5000, "\udce4", "[/]", ".")
UNTRIED = {"device", "balance", "repair", "stop_on_divergence", "lr_search"}
"""Flags without a value, or that would take a GPU."""


def lines() -> list[list[str]]:
    found = []
    for field in fields(TrainConfig):
        kind = str(FIELD_TYPES[field.name])
        if field.name in UNTRIED:
            continue
        values = PATHS if "Path" in kind else NUMBERS if "int" in kind or "float" in kind else NAMES
        found += [[*TINY, f"{flag(field.name)}={value}"] for value in values]
    for task in ("text", "ptb", "overfit", "add", "nothing", ""):
        found += [[*TINY, "--task", task, f"--data={path}"] for path in PATHS]
    found += [[*TINY, f"--{word}"] for word in ("", "x", "steps", "no-steps", "help=3", "out", "a=b=c", "\udce4")]
    return found


LINES = lines()


def assert_harmless(arguments: list[str]) -> None:
    before = set(Path().rglob("*"))
    # As the streams of a program: characters that can't be encoded are escaped.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: object = main(arguments)
        except SystemExit as exit:  # of the parser, which has printed what was wrong
            code = exit.code
    err.seek(0)
    error = err.read().strip()
    assert code in (0, 2), (arguments, code, error)
    made = set(Path().rglob("*")) - before
    if code == 2:
        assert error, arguments
        assert not error.startswith("error: ") or "\n" not in error, (arguments, error)
        assert not made, (arguments, error, made)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").write_text("something, so that the folder is not empty\n")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sample(folder: Path) -> None:
    for arguments in random.Random(0).sample(LINES, 60):
        assert_harmless(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all(part: int, folder: Path) -> None:
    for arguments in LINES[part::8]:
        assert_harmless(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden-size", "100000"], "the model and what zo keeps of it take at least 160 GB"),
        (["--hidden-size", "1000000000000"], "hidden_size must be below 2^31, not 1000000000000"),
        (["--hidden-size", "2000000000"], "the model is too large: Storage size calculation overflowed"),
        (["--batch-size", "10000000000"], "the states of a batch take at least 2.56e+03 GB"),
        (["--max-length", "100000000000"], "the tokens of a batch take at least"),
        (["--threads", "2000"], "--threads must be at most"),
        (["--steps", "9" * 26], "--steps must be below 2^63"),
        (["--alphabet-size", "100000000"], "alphabet_size must be at most 35380, not 100000000"),
        (["--task", "text", "--data", "/dev/zero"], "/dev/zero is a device"),
    ],
)
def test_sizes_are_refused_before_anything_is_allocated_or_made(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["here", "runs"]
    assert not any((folder / "runs").iterdir())


def test_a_failed_allocation_ends_the_run_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("zo_kernels.train.solvers.ZeroOrderSolver.apply", fail)
    threads = torch.get_num_threads()
    assert main([*TINY, "--out", "run"]) == 2
    assert "error: memory ran out: give --micro-batch-size" in capsys.readouterr().err
    assert torch.get_num_threads() == threads
