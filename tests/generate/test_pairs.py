"""Text from a run of pairs: an input is asked for its target, and the text ends with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.runs import SMALL
from zo_kernels.generate.__main__ import main
from zo_kernels.train.__main__ import main as train

Printed = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one step, whose model always prefers the letter b."""
    (tmp_path / "pairs.csv").write_text("in,out\n" + "a,b\n" * 20)
    data = ["--data", str(tmp_path / "pairs.csv"), "--input", "in", "--target", "out"]
    assert train(["--task", "pairs", *data, *SMALL, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    prefer(tmp_path / "run", 1)
    return tmp_path / "run"


def prefer(run: Path, token: int) -> None:
    weights = load_file(run / "weights.safetensors")
    weights["output_bias"] = 100.0 * torch.nn.functional.one_hot(torch.tensor(token), 4).float()
    save_file(weights, run / "weights.safetensors")


@pytest.fixture
def text(run: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    def printed(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["--run", str(run), "--temperature", "0", *arguments]) == 0
        return capsys.readouterr().out

    return printed


def test_the_separator_is_added_to_an_input_alone(text: Printed) -> None:
    assert text("--prompt", "ab", "--tokens", "3") == text("--prompt", "ab\t", "--tokens", "3") == "ab\tbbb\n"
    assert text("--prompt", "ab\tb", "--tokens", "3") == "ab\tbbbb\n"


def test_the_text_ends_at_the_end_mark(text: Printed, run: Path) -> None:
    prefer(run, 3)
    assert text("--prompt", "ab") == "ab\t\n"


def test_a_state_is_saved_after_the_separator(text: Printed, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert text("--prompt", "ab", "--tokens", "0", "--save-state", state) == "ab\t\n"
    assert text("--load-state", state, "--tokens", "2") == "bb\n"
    assert text("--load-state", state, "--prompt", "b", "--tokens", "2") == "bbb\n"
