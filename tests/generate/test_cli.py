"""`python -m zo_kernels.generate`: what it prints and when, its exit codes, and what it says of bad input."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zo_kernels.generate import LoadedRun, generate, read_prompt
from zo_kernels.generate.__main__ import main
from zo_kernels.models import LSTM, States

Printed = Callable[..., str]


@pytest.fixture
def text(run: LoadedRun, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Runs the command on a run, of each model in turn, and returns what it prints."""

    def printed(*arguments: str) -> str:
        assert main(["--run", str(run.path), *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return printed


def test_it_prints_the_prompt_and_what_the_library_generates(text: Printed, run: LoadedRun) -> None:
    state = read_prompt(run.model, run.encode("ab|"))
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([], {}),
        (["--temperature", "0"], {"temperature": 0.0}),
        (["--temperature", "0.5", "--top-k", "3"], {"temperature": 0.5, "top_k": 3}),
    ]
    for options, keywords in cases:
        tokens = generate(run.model, state, 40, generator=torch.Generator().manual_seed(7), **keywords)
        expected = "ab|" + run.decode(tokens) + "\n"
        assert text("--prompt", "ab|", "--tokens", "40", "--seed", "7", *options) == expected


def test_control_characters_are_shown_unless_raw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "vocabulary.json").write_text(json.dumps(["\x1b", "\x07", "\x9b", "\n", "|"]))
    weights = folder / "weights.safetensors"
    save_file(load_file(weights), weights)  # without the digest of the other vocabulary
    command = ["--run", str(folder), "--prompt=\n\x1b|", "--tokens", "60"]
    assert main([*command, "--raw"]) == 0
    raw = capsys.readouterr().out
    assert set("\x1b\x07\x9b") <= set(raw[3:])
    assert main(command) == 0
    escaped = raw.replace("\x1b", r"\x1b").replace("\x07", r"\x07").replace("\x9b", r"\x9b")
    assert capsys.readouterr().out == escaped


def test_same_command_same_text(text: Printed) -> None:
    command = ["--prompt", "ab|"]
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = text(*command)
    assert len(first) == len("ab|") + 200 + len("\n")
    assert text(*command) == first == text(*command, "--seed", "0", "--threads", str(threads + 1))
    assert torch.get_num_threads() == threads
    assert text(*command, "--seed", str(2**64 - 1)) != first
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_state_goes_on_as_if_it_had_been_one_prompt(text: Printed, tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    whole = text("--prompt", "abcd|cab|")
    assert text("--prompt", "abcd|", "--tokens", "0", "--save-state", first) == "abcd|\n"
    assert "abcd|" + text("--load-state", first, "--prompt", "cab|") == whole
    assert "abcd|" + text("--load-state", first, "--prompt", "c", "--save-state", second, "--tokens", "0") == "abcd|c\n"
    assert text("--load-state", second, "--prompt", "ab|", "--save-state", third) == "ab|" + whole[len("abcd|cab|") :]
    assert text("--load-state", third) == whole[len("abcd|cab|") :] == text("--load-state", third, "--prompt", "")
    assert text("--load-state", third, "--tokens", "0") == "\n"


def test_saving_a_state_does_not_change_the_text(text: Printed, tmp_path: Path) -> None:
    assert text("--prompt", "ab|", "--save-state", str(tmp_path / "state")) == text("--prompt", "ab|")


def test_zero_tokens_is_the_prompt(text: Printed) -> None:
    assert text("--prompt", "ab|", "--tokens", "0") == "ab|\n"


class Screen(io.StringIO):
    """A stdout that notes what has reached the screen at every flush."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = [""]

    def flush(self) -> None:
        self.shown.append(self.getvalue())


def test_every_character_is_shown_before_the_next_is_computed(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, seen = Screen(), list[str]()
    next_logits = LSTM.next_logits

    def watched(*args: Any) -> tuple[torch.Tensor, States]:
        seen.append(screen.shown[-1])
        return next_logits(*args)

    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(LSTM, "next_logits", watched)
    assert main(["--run", str(folders["lstm"]), "--prompt", "ab|", "--tokens", "5"]) == 0
    text = screen.getvalue()
    assert len(text) == len("ab|") + 5 + len("\n")
    assert seen == ["", *(text[: 3 + done] for done in range(1, 5))]
    assert screen.shown[1:] == [*(text[: 3 + done] for done in range(6)), text]


def interrupted_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, next_logits = count(1), LSTM.next_logits

    def interrupted(*args: Any) -> tuple[torch.Tensor, States]:
        if next(calls) == call:
            raise KeyboardInterrupt
        return next_logits(*args)

    monkeypatch.setattr(LSTM, "next_logits", interrupted)


@pytest.mark.parametrize("call", [1, 4])
def test_ctrl_c_ends_the_line(
    call: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--run", str(folders["lstm"]), "--prompt", "ab|"]
    assert main(command) == 0
    whole = capsys.readouterr().out
    interrupted_at(call, monkeypatch)
    assert main(command) == 130
    assert capsys.readouterr() == ("\n" if call == 1 else whole[: 3 + call - 1] + "\n", "")


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(folders: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "zo_kernels.generate", "--run", str(folders["lstm"]), "--prompt", "ab|"]
    process = subprocess.Popen(
        [*command, "--tokens", "1000000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.read(5).startswith("ab|")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


def test_a_full_disk_is_one_sentence(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["--run", str(folders["lstm"]), "--prompt", "a"]) == 2
    assert capsys.readouterr().err == "error: can't print the text: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run", "{tmp}/nowhere", "--prompt", "a"], "there is no run folder {tmp}/nowhere"),
        (["--run", "{tmp}", "--prompt", "a"], "{tmp} has no config.json: has the run ended"),
        ([], "there is nothing to continue: give --prompt a text, or --load-state a saved state"),
        (["--prompt", ""], "there is nothing to continue: "),
        (["--prompt", "abé"], "the character 'é' is not in the vocabulary of {run}: it has 'abcd|'"),
        (["--prompt", "a\nb"], "the character '\\n' is not in the vocabulary of {run}: "),
        (["--prompt", "a\udcff"], "the character '\\udcff' is not in the vocabulary of {run}: "),
        (["--prompt=-a"], "the character '-' is not in the vocabulary of {run}: "),
        (["--prompt", "None"], "the character 'N' is not in the vocabulary of {run}: "),
        (["--prompt", "a", "--tokens", "-1"], "--tokens must be at least 0, not -1"),
        (["--prompt", "a", "--temperature", "-0.1"], "--temperature must be finite and at least 0, not -0.1"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature must be finite and at least 0, not nan"),
        (["--prompt", "a", "--temperature", "inf"], "--temperature must be finite and at least 0, not inf"),
        (["--prompt", "a", "--top-k", "0"], "--top-k must be at least 1, not 0"),
        (["--prompt", "a", "--threads", "0"], "--threads must be at least 1, not 0"),
        (["--prompt", "a", "--seed", "-1"], "--seed must be in [0, 2^64), not -1"),
        (["--prompt", "a", "--seed", str(2**64)], "--seed must be in [0, 2^64), not "),
        (["--load-state", "{tmp}/nowhere"], "can't read {tmp}/nowhere: No such file or directory"),
        (["--load-state", "{tmp}"], "can't read {tmp}: Is a directory"),
        (["--load-state", "{run}/config.json"], "{run}/config.json is not a saved state ("),
        (["--load-state", "{run}/weights.safetensors"], "{run}/weights.safetensors is not a saved state: "),
        (["--prompt", "a", "--save-state", "{tmp}"], "{tmp} exists and is not a saved state"),
        (
            ["--prompt", "a", "--save-state", "{tmp}/nowhere/state"],
            "can't write {tmp}/nowhere/state: there is no folder {tmp}/nowhere",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"tmp": tmp_path, "run": folders["lstm"]}
    run = [] if "--run" in arguments else ["--run", str(folders["lstm"])]
    assert main([*run, *(argument.format(**names) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: " + sentence.format(**names))
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_found_before_the_prompt_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_at(1, monkeypatch)
    arguments = ["--run", str(folder), "--prompt", "a", "--save-state", str(folder / "config.json")]
    assert main(arguments) == 2


@pytest.mark.parametrize("arguments", [["--tokens", "many"], ["--no-such-flag"], ["--prompt"]])
def test_unparsable_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--run", "x", *arguments])
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_shows_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    flags = "run prompt tokens temperature top-k seed threads save-state load-state"
    assert all(f"--{flag} " in shown for flag in flags.split())


def test_bugs_are_not_hidden(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(LSTM, "next_logits", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["--run", str(folders["lstm"]), "--prompt", "a"])
