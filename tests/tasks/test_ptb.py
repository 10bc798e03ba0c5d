"""The Penn Treebank task: which file is for what, the vocabulary, and folders that cannot be used."""

from pathlib import Path

import pytest
import torch

from tests.tasks.make import write_ptb
from zo_kernels.tasks import Batch, PennTreebank

TRAIN, VALID, TEST = " aer banknote <unk> N\n" * 9, " <unk> kern\n" * 5, " earn N\n" * 4


def make(folder: Path, **options: int) -> PennTreebank:
    return PennTreebank(data=folder, **{"batch_size": 4, "context_length": 6, "seed": 0, **options})


def windows(task: PennTreebank, batch: Batch) -> list[str]:
    return [task.decode(torch.cat((row, last))) for row, last in zip(batch.tokens, batch.targets[:, -1:], strict=True)]


def test_each_file_is_for_its_set(tmp_path: Path) -> None:
    write_ptb(tmp_path, TRAIN, VALID, TEST)
    task = make(tmp_path)
    assert task.symbols == tuple(sorted(set(TRAIN)))
    training = [window for step in range(200) for window in windows(task, task.batch(step))]
    assert all(window in TRAIN for window in training)
    assert len(set(training)) == len({TRAIN[i : i + 7] for i in range(len(TRAIN) - 6)})
    sets = {**task.validation_batches(), **task.test_batches()}
    assert list(sets) == ["validation", "test"]
    for name, text in (("validation", VALID), ("test", TEST)):
        rows = [window for batch in sets[name] for window in windows(task, batch)]
        assert rows == [text[start : start + 7] for start in range(0, len(text) - 6, 6)]


def test_reference_losses_are_those_of_the_training_file(tmp_path: Path) -> None:
    write_ptb(tmp_path, "abbbb" * 20, "ba" * 20, "aa" * 20)
    assert make(tmp_path).reference_losses == pytest.approx({"chance": 0.6931, "unigram entropy": 0.5004}, abs=1e-4)


def test_unusable_folders_are_named_with_the_remedy(tmp_path: Path) -> None:
    for name, texts, message in (
        ("alien", (TRAIN, VALID + "é", TEST), r"alien/ptb.valid.txt has the character 'é', which ptb.train.txt lacks"),
        ("foreign", (TRAIN, VALID, "Z" + TEST), r"ptb.test.txt has the character 'Z', which ptb.train.txt lacks"),
        (
            "short",
            (TRAIN, VALID, TEST[:6]),
            "test.txt has 6 characters, but --context-length 6 needs at least 7: give at most .* 5, or",
        ),
        ("empty", (TRAIN, "", TEST), "ptb.valid.txt is empty: give a text file"),
    ):
        (tmp_path / name).mkdir()
        write_ptb(tmp_path / name, *texts)
        with pytest.raises(ValueError, match=message):
            make(tmp_path / name)
    write_ptb(tmp_path, TRAIN, VALID, TEST)
    (tmp_path / "ptb.test.txt").unlink()
    with pytest.raises(ValueError, match=r"^cannot read .*ptb.test.txt: No such file or directory$"):
        make(tmp_path)
    with pytest.raises(ValueError, match=r"^cannot read .*ptb.train.txt: Not a directory$"):
        make(tmp_path / "ptb.train.txt")


@pytest.mark.parametrize(("option", "least"), [("batch_size", 1), ("context_length", 1), ("curriculum", 0)])
def test_bad_options_are_refused(tmp_path: Path, option: str, least: int) -> None:
    write_ptb(tmp_path, TRAIN, VALID, TEST)
    with pytest.raises(ValueError, match=f"^{option} must be at least {least}, not {least - 1}$"):
        make(tmp_path, **{option: least - 1})
