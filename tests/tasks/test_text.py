"""The text task: vocabulary, split, windows, and files that cannot be used."""

import math
from pathlib import Path

import pytest
import torch

from zo_kernels.tasks import Text

CONTENT = "".join(chr(ord("a") + i % 7) if i % 11 else "é\n"[i % 2] for i in range(1000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes(CONTENT.encode())
    return path


def make(file: Path, **options: int) -> Text:
    return Text(data=file, **{"batch_size": 4, "context_length": 6, "seed": 0, **options})


def windows(task: Text, batch) -> list[str]:
    """The text of every row, its last target included; checks that targets are the tokens one further."""
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    return [task.decode(torch.cat((row, last))) for row, last in zip(batch.tokens, batch.targets[:, -1:], strict=True)]


def test_vocabulary_is_the_characters_of_the_file(file: Path) -> None:
    task = make(file)
    assert task.alphabet == "".join(sorted(set(CONTENT)))
    assert task.vocab_size == len(set(CONTENT))
    assert list(task.symbols) == sorted(set(CONTENT))
    assert task.decode(task.encode("gab\né")) == "gab\né"
    assert task.encode("ab").tolist() == [task.alphabet.index("a"), task.alphabet.index("b")]
    with pytest.raises(ValueError, match="no character 'z'"):
        task.encode("az")


def test_split_is_90_5_5(file: Path) -> None:
    task = make(file)
    training = [window for step in range(200) for window in windows(task, task.batch(step))]
    assert all(window in CONTENT[:900] for window in training)
    held_out = {**task.validation_batches(), **task.test_batches()}
    assert list(held_out) == ["validation", "test"]
    for name, part in (("validation", CONTENT[900:950]), ("test", CONTENT[950:])):
        rows = [window for batch in held_out[name] for window in windows(task, batch)]
        assert rows == [part[start : start + 7] for start in range(0, 44, 6)]  # every window of 6 + 1 that fits in 50


def test_training_windows_reach_both_ends(tmp_path: Path) -> None:
    file = tmp_path / "alphabet.txt"
    file.write_text("".join(chr(0x4E00 + i) for i in range(60)), encoding="utf-8")
    task = make(file, batch_size=64, context_length=2)
    starts = {int(row[0]) for step in range(20) for row in task.batch(step).tokens}
    assert starts == set(range(52))  # 54 training characters, windows of 2 + 1


def test_large_held_out_parts_are_sampled_evenly(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "evaluated_tokens", 18)
    task = make(file)
    rows = [window for batch in task.validation_batches()["validation"] for window in windows(task, batch)]
    assert rows == [CONTENT[900 + start : 907 + start] for start in (0, 18, 42)]


def test_a_curriculum_scores_more_and_more_of_the_same_windows(file: Path) -> None:
    task, full = make(file, curriculum=10), make(file)
    for step, scored in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (6, 4), (8, 5), (9, 5), (10, 6), (11, 6), (2**40, 6)):
        batch, whole = task.batch(step), full.batch(step)
        assert torch.equal(batch.tokens, whole.tokens)
        assert torch.equal(batch.targets[:, :scored], whole.targets[:, :scored])
        assert (batch.targets[:, scored:] == -100).all()
    assert all((batch.targets != -100).all() for batch in task.validation_batches()["validation"])


def test_reference_losses(file: Path) -> None:
    task = make(file)
    counts = [CONTENT[:900].count(character) for character in task.alphabet]
    entropy = -sum(count / 900 * math.log(count / 900) for count in counts if count)
    assert task.reference_losses == {
        "chance": pytest.approx(math.log(task.vocab_size)),
        "unigram entropy": pytest.approx(entropy),
    }


def test_unusable_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1") * 500)
    empty = tmp_path / "empty.txt"
    empty.touch()
    short = tmp_path / "short.txt"
    short.write_text("a" * 139)
    for path, message in (
        (tmp_path / "nowhere.txt", r"cannot read .*nowhere.txt: No such file"),
        (tmp_path, r"cannot read .*: Is a directory"),
        (latin, r"latin.txt is not UTF-8 text \(byte 0 can't be decoded\): convert it"),
        (empty, "empty.txt is empty: give a text file"),
        (
            short,
            "has 139 characters, but --context-length 6 needs at least 140: give at most --context-length 5, or",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make(path)
    short.write_text("a" * 140)
    assert len(make(short).validation_batches()["validation"]) == 1


@pytest.mark.parametrize(("option", "least"), [("batch_size", 1), ("context_length", 1), ("curriculum", 0)])
def test_bad_options_are_refused(file: Path, option: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be at least {least}, not {least - 1}$"):
        make(file, **{option: least - 1})
