"""Every task from the command line, and that the flags are the options of the tasks' constructors."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest

from tests.tasks.make import stub_hugging_face, write_ptb
from tests.train.runs import FILES, SMALL, files_of, metrics_of, weights_of
from zo_kernels.generate import UsageError, load_run
from zo_kernels.tasks import TASKS
from zo_kernels.train import config
from zo_kernels.train.__main__ import main
from zo_kernels.train.config import TrainConfig
from zo_kernels.train.defaults import DEFAULTS


def arguments(task: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a small run of a task takes besides SMALL; its files are put into the folder."""
    sentence = "to be or not to be, that is the question\n"
    (folder / "book.txt").write_text(sentence * 20)
    write_ptb(folder, sentence, sentence, sentence)
    stub_hugging_face(monkeypatch, [sentence] * 30)
    (folder / "pairs.csv").write_text("question,answer\n" + "".join(f"{i},{i * i}\n" for i in range(200)))
    (folder / "series.csv").write_text("x,y\n" + "".join(f"{i % 7},{i % 5 + i % 7}\n" for i in range(700)))
    data = {"text": "book.txt", "ptb": ".", "owt": "tokens", "pairs": "pairs.csv", "series": "series.csv"}
    columns = {"pairs": ["--input", "question", "--target", "answer"], "series": ["--target", "y"]}.get(task, [])
    return ["--task", task, *(["--data", str(folder / data[task])] if task in data else []), *columns]


@pytest.mark.parametrize("task", TASKS)
def test_it_runs(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = [*arguments(task, tmp_path, monkeypatch), *SMALL, "--steps", "2"]
    if "curriculum" in inspect.signature(TASKS[task]).parameters:
        command += ["--curriculum", "2"]
    assert main([*command, "--out", str(out)]) == 0
    assert files_of(out) == FILES
    symbols = json.loads((out / "vocabulary.json").read_text())
    if task != "series":  # which has the columns there, not tokens
        assert len(symbols) == len(weights_of(out)["output_bias"])
    lines = metrics_of(out)
    assert all("train_loss" in line for line in lines[1:])
    assert ("longer_loss" in lines[-1]) == (task not in ("overfit", "text", "ptb", "owt", "pairs", "series"))
    assert ("test_loss" in lines[-1]) == (task in ("text", "ptb", "owt", "pairs", "series"))
    shown = capsys.readouterr().out
    assert (f"task    {task}: " if task == "series" else f"task    {task}: {len(symbols)} different tokens") in shown
    if task == "owt":  # its tokens are no characters, so that there is no text to generate
        with pytest.raises(UsageError, match="is not a vocabulary of characters"):
            load_run(out)
    elif task == "series":
        with pytest.raises(UsageError, match="predicts numbers, not text"):
            load_run(out)
    else:
        assert load_run(out).symbols == tuple(symbols)


def test_flags_are_the_options_of_the_constructors() -> None:
    assert [*DEFAULTS] == [*TASKS]
    assert all(default.task == task for task, default in DEFAULTS.items())
    options = {task: set(inspect.signature(constructor).parameters) for task, constructor in TASKS.items()}
    names = {field.name for field in fields(TrainConfig)}
    assert set().union(*options.values()) <= names
    assert set(config.TASK_OPTIONS) == set().union(*options.values()) - set.intersection(*options.values())


def test_longer_length_and_curriculum_reach_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(name: str, *flags: str) -> tuple[float, float, float]:
        assert main([*SMALL, *flags, "--out", str(tmp_path / name)]) == 0
        lines = metrics_of(tmp_path / name)
        return lines[1]["train_loss"], lines[0]["validation_loss"], lines[0]["longer_loss"]

    plain, longer, curriculum = losses("1"), losses("2", "--longer-length", "7"), losses("3", "--curriculum", "4")
    assert plain == losses("4", "--longer-length", "10") == losses("5", "--curriculum", "0")
    assert (longer[:2], curriculum[1:]) == (plain[:2], plain[1:])
    assert longer[2] != plain[2]
    assert curriculum[0] != plain[0]
