"""The flags of `python -m zo_kernels.train`: the help, and what it says when a value is wrong."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from tests.tasks.make import ALGORITHMIC
from tests.train.runs import SMALL
from zo_kernels import _C
from zo_kernels.tasks import TASKS
from zo_kernels.train.__main__ import main
from zo_kernels.train.config import TrainConfig
from zo_kernels.train.defaults import DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--task", "chess"],
            "unknown task 'chess': choose one of copy, reverse, sort, repeat-copy, add, rolling-sum, overfit, text, "
            "ptb, owt, pairs",
        ),
        (["--task", "text"], "the task text needs --data"),
        (["--task", "ptb"], "the task ptb needs --data"),
        (["--task", "owt"], "the task owt needs --data"),
        (["--task", "pairs", "--data", "{tmp}/book.txt", "--input", "a"], "the task pairs needs --target"),
        (["--task", "text", "--data", "{tmp}/nowhere.txt"], "cannot read {tmp}/nowhere.txt: No such file or directory"),
        (["--task", "text", "--data", "{tmp}"], "cannot read {tmp}: Is a directory"),
        (
            ["--task", "text", "--data", "{tmp}/book.txt", "--context-length", "50"],
            "{tmp}/book.txt has 820 characters, but --context-length 50 needs at least 1020: "
            "give at most --context-length 40, or a longer file",
        ),
        (["--task", "ptb", "--data", "{tmp}"], "cannot read {tmp}/ptb.train.txt: No such file or directory"),
        (["--task", "owt", "--data", "{tmp}/book.txt"], "{tmp}/book.txt is not a file of tokens "),
        (["--data", "{tmp}/book.txt"], "--data does not apply to the task copy"),
        (["--context-length", "7"], "--context-length does not apply to the task copy"),
        (["--max-repeats", "2"], "--max-repeats does not apply to the task copy"),
        (["--task", "overfit", "--curriculum", "9"], "--curriculum does not apply to the task overfit"),
        (
            ["--task", "ptb", "--data", "{tmp}", "--longer-length", "60"],
            "--longer-length does not apply to the task ptb",
        ),
        (
            ["--task", "text", "--data", "{tmp}/book.txt", "--tokenizer", "gpt2"],
            "tokenizer must be characters, bytes, bpe:N or a tokenizer.json: cannot read gpt2: No such file",
        ),
        (["--tokenizer", "bytes"], "--tokenizer does not apply to the task copy"),
        (
            ["--task", "text", "--data", "{tmp}/book.txt", "--tokenizer", "bpe:3"],
            "tokenizer bpe:N must have a number of tokens N of at least 256, not 3",
        ),
        (["--hidden-size", "10", "--num-heads", "4"], "hidden_size 10 is not divisible by num_heads 4"),
        (["--embed-dim", "0"], "embed_dim must be a positive integer, not 0"),
        (["--lr", "0"], "--lr must be positive and finite, or search, not 0.0"),
        (["--lr", "inf"], "--lr must be positive and finite, or search, not inf"),
        (["--eps", "-1"], "eps must be positive and finite, not -1.0"),
        (["--eps", "nan"], "eps must be positive and finite, not nan"),
        (["--weight-decay", "-1"], "weight_decay must be in [0, 1/lr], not -1.0"),
        (["--probes", "0"], "probes must be a positive integer, not 0"),
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--max-length", "0"], "max_length must be at least 1, not 0"),
        (["--alphabet-size", "1"], "alphabet_size must be at least 2, not 1"),
        (["--longer-length", "4"], "longer_length must be above max_length 5, not 4"),
        (["--curriculum", "-1"], "curriculum must be at least 0, not -1"),
        (["--task", "repeat-copy", "--max-repeats", "10"], "max_repeats must be at most 9, not 10"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--validate-every", "0"], "--validate-every must be at least 1, not 0"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--lr-decay", "1.5"], "--lr-decay must be above 0 and at most 1, not 1.5"),
        (["--seed", "-1"], "--seed must be in [0, 2^64), not -1"),
        (["--device", "tpu"], "unknown device 'tpu': choose one of auto, cpu, cuda"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--model", "rnn"], "unknown model 'rnn': choose one of lstm, gru, elman, slstm, dnc, paper-dnc"),
        (["--precision", "float16"], "precision must be one of float32, bfloat16, not 'float16'"),
        (
            ["--precision", "bfloat16", "--eps", "0.03"],
            "--precision bfloat16 needs an --eps that is a power of two, such as 0.03125, not 0.03",
        ),
        (["--micro-batch-size", "0"], "--micro-batch-size must be at least 1, not 0"),
        (["--micro-batch-size", "-2"], "--micro-batch-size must be at least 1, not -2"),
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
    assert capsys.readouterr().err == (
        "error: the device cuda is not available, for torch finds no usable GPU here: give --device cpu\n"
    )


@pytest.mark.parametrize(
    "arguments", [["--steps", "many"], ["--no-such-flag"], ["--lr"], ["--task"], ["--micro-batch-size", "half"]]
)
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


FLAG = re.compile("[│ ] (--[a-z][a-z-]*)(.*)")
"""The line of --help on which a flag begins; those that follow are indented."""


def help_lines(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> list[str]:
    """What --help prints in a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as exit_:
        main([*flags, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out.splitlines()


def help_of(task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What --help says of each flag."""
    said: dict[str, list[str]] = {}
    for line in help_lines(120, monkeypatch, capsys, "--task", task):
        if match := FLAG.match(line):
            words = said.setdefault(match[1], [])
            line = match[2]
        if said:
            words += line.strip("│ ").split()
    return {flag: " ".join(words) for flag, words in said.items()}


@pytest.mark.parametrize("task", TASKS)
def test_help_shows_every_flag_and_the_task_s_default(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = help_of(task, monkeypatch, capsys)
    shown = [field for field in fields(TrainConfig) if field.name != "lr_search"]  # that is --lr search
    assert said.keys() == {"--" + field.name.replace("_", "-") for field in shown}
    for field in shown:
        default = getattr(DEFAULTS[task], field.name)
        if default not in (None, "", ()):
            assert f"default: {default})" in said["--" + field.name.replace("_", "-")]
    for flag, known_to, unset in (
        ("--data", "text, ptb, owt, pairs, series only", "; required"),
        ("--dataset", "owt only", ""),
        ("--max-repeats", "repeat-copy only", ""),
        ("--context-length", "overfit, text, ptb, owt, series only", ""),
        ("--max-length", "not for overfit, text, ptb, owt, series", ""),
        ("--target", "pairs, series only", "; required"),
        ("--longer-length", f"{', '.join(ALGORITHMIC)} only", "; default: twice --max-length"),
        ("--alphabet-size", "not for text, ptb, owt, pairs, series", ""),
        ("--curriculum", "not for overfit, pairs, series", ""),
        ("--validation-data", "text only", "; default: a part of --data"),
        ("--parts", "text, series only", "; default: 0.9,0.05,0.05"),
    ):
        default = getattr(DEFAULTS[task], flag[2:].replace("-", "_"))
        assert f"({known_to}{unset if default is None else f'; default: {default}'})" in said[flag]


@pytest.mark.parametrize("columns", [80, 120])
def test_help_groups_the_flags_by_subject(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = help_lines(columns, monkeypatch, capsys)
    assert max(map(len, lines)) <= columns
    groups: dict[str, list[str]] = {}
    for line in lines:
        if title := re.match(r"\W+(([a-z]+ )?options)\b", line):
            flags = groups.setdefault(title[1], [])
        elif flag := FLAG.match(line):
            flags.append(flag[1])
    first = {
        **{"run": "--steps", "task": "--task", "data": "--data", "model": "--model", "solver": "--solver"},
        **{"probe": "--probes", "file": "--out", "process": "--split"},
    }
    assert list(groups) == ["options", *(f"{subject} options" for subject in first)]
    assert {subject: groups[f"{subject} options"][0] for subject in first} == first
    assert all(len(flags) <= 12 for flags in groups.values())


def test_the_help_of_a_flag_is_one_line_in_its_source() -> None:
    """tyro breaks lines where the source does."""
    for group in TrainConfig.__bases__:
        said = re.findall(r'^    """(.*?)"""$', inspect.getsource(group), re.MULTILINE | re.DOTALL)
        assert len(said) == len(fields(group)) + 1
        assert not any("\n" in text for text in said)


def test_bfloat16_products_need_a_processor_that_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _C.set_isa("baseline")
    assert main([*SMALL, "--eps", "0.03125", "--precision", "bfloat16", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error == "error: bfloat16 products need a processor with AVX512_BF16: use precision='float32'\n"
    assert not (tmp_path / "run").exists()
