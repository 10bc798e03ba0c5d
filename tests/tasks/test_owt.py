"""The OpenWebText task: the file of tokens, where they come from, and what is said when that can't be had."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tasks.make import LetterTokenizer, stub_hugging_face
from zo_kernels.tasks import Batch, OpenWebText

TEXTS = ["to be", "or not to be", "", "that is the question"] * 9
STREAM = b"".join(text.encode() + b"\x80" for text in TEXTS)
"""What LetterTokenizer makes of them."""


def make(data: Path, **options: Any) -> OpenWebText:
    source = {"dataset": "words", "tokenizer": "letters", "max_tokens": 300}
    return OpenWebText(data=data, **{**source, "batch_size": 4, "context_length": 6, "seed": 0, **options})


def windows(batch: Batch) -> list[bytes]:
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    return [bytes([*row, last]) for row, last in zip(batch.tokens.tolist(), batch.targets[:, -1].tolist(), strict=True)]


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed."""
    for name in ("datasets", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)


def test_tokens_are_the_rows_with_an_end_after_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub_hugging_face(monkeypatch, TEXTS)
    task = make(tmp_path / "tokens")
    assert calls == {"load_dataset": ["words"], "load_from_disk": []}
    assert (task.vocab_size, task.symbols[:2], task.symbols[-1]) == (129, ("<0>", "<1>"), "<128>")
    training = [window for step in range(200) for window in windows(task.batch(step))]
    assert all(window in STREAM[:270] for window in training)
    for name, start in (("validation", 270), ("test", 285)):
        (batch,) = {**task.validation_batches(), **task.test_batches()}[name]
        assert windows(batch) == [STREAM[start : start + 7], STREAM[start + 6 : start + 13]]
    assert list(task.reference_losses) == ["chance", "unigram entropy"]
    assert task.reference_losses["chance"] == pytest.approx(np.log(129))


def test_the_file_is_made_once_and_then_needs_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stub_hugging_face(patch, TEXTS)
        first = make(tmp_path / "tokens").batch(3)
    for name in ("datasets", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    before = (tmp_path / "tokens").read_bytes()
    again = make(tmp_path / "tokens")
    assert torch.equal(again.batch(3).tokens, first.tokens)
    assert again.symbols[5] == "<5>"
    assert (tmp_path / "tokens").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_tokens_are_mapped_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_hugging_face(monkeypatch, TEXTS)
    task = make(tmp_path / "tokens")
    task.batch(0)
    assert str(tmp_path / "tokens") in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("vocab_size", "bytes_a_token"), [(65536, 2), (65537, 4)])
def test_a_token_takes_two_bytes_if_it_can(
    vocab_size: int, bytes_a_token: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hugging_face(monkeypatch, TEXTS, LetterTokenizer(vocab_size))
    sizes = []
    for max_tokens in (300, 301):
        stub_hugging_face(monkeypatch, TEXTS, LetterTokenizer(vocab_size))
        task = make(tmp_path / str(max_tokens), max_tokens=max_tokens)
        header = int.from_bytes((tmp_path / str(max_tokens)).read_bytes()[:8], "little")
        sizes.append((tmp_path / str(max_tokens)).stat().st_size - header)
        assert windows(task.validation_batches()["validation"][0])[0] == STREAM[270 + max_tokens - 300 :][:7]
        assert task.vocab_size == vocab_size
    assert sizes[1] - sizes[0] == bytes_a_token


def test_a_tokenizer_without_an_end_puts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_hugging_face(monkeypatch, TEXTS, LetterTokenizer(128, eos_token_id=None))
    (batch,) = make(tmp_path / "tokens").validation_batches()["validation"]
    assert windows(batch)[0] == "".join(TEXTS).encode()[270:277]


def test_no_more_rows_are_read_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[str]:
        for _ in range(16):  # 19 tokens each
            yield "to be or not to be"
        raise AssertionError("300 tokens are enough")

    stub_hugging_face(monkeypatch, rows())
    (batch,) = make(tmp_path / "tokens").test_batches()["test"]
    assert len(batch.tokens) == 2


@pytest.mark.parametrize(("file", "splits"), [("state.json", False), ("dataset_dict.json", True)])
def test_a_saved_dataset_is_loaded_from_its_folder(
    file: str, splits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / file).touch()
    rows = [{"text": text} for text in TEXTS]
    calls = stub_hugging_face(monkeypatch, {"test": [], "train": rows} if splits else rows)
    task = make(tmp_path / "tokens", dataset=str(tmp_path / "saved"))
    assert calls == {"load_dataset": [], "load_from_disk": [str(tmp_path / "saved")]}
    assert windows(task.validation_batches()["validation"][0])[0] == STREAM[270:277]


@pytest.mark.usefixtures("no_packages")
def test_missing_packages_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the package datasets is missing: pip install 'zo_kernels") as error:
        make(tmp_path / "tokens")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


class Broken:
    """Rows of which the third can't be had."""

    def __iter__(self) -> Iterator[Any]:
        yield {"text": "to be"}
        yield {"text": "or"}
        raise ConnectionError("no network\nand a long story")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Broken(), "cannot load the dataset words: no network"),
        ([{"words": "to be"}], "cannot load the dataset words: it has no column text, only words"),
    ],
)
def test_a_dataset_that_fails_leaves_no_file(
    rows: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hugging_face(monkeypatch, rows)
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_dataset_without_a_training_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_dict.json").touch()
    stub_hugging_face(monkeypatch, {"test": []})
    with pytest.raises(ValueError, match=r"it has no split train, only test$"):
        make(tmp_path / "tokens", dataset=str(tmp_path))


def test_unusable_files_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book.txt").write_text("to be or not to be\n" * 10)
    torch_file = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(2)}, torch_file)
    for path, message in (
        (tmp_path / "book.txt", r"book.txt is not a file of tokens \(.*\): give the name of one, or of a new file"),
        (torch_file, "weights.safetensors is not a file of tokens: give the name of one, or of a new file"),
        (tmp_path, "cannot read .*: Is a directory"),
        (tmp_path / "nowhere" / "tokens", "cannot write .*tokens: there is no folder .*nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            make(path)
    stub_hugging_face(monkeypatch, TEXTS)
    make(tmp_path / "tokens")
    for option, value, message in (
        ("dataset", "others", "has the tokens of dataset words, not others: give another file"),
        ("tokenizer", "others", "has the tokens of tokenizer letters, not others: give another file"),
        ("max_tokens", 299, "has the tokens of max_tokens 300, not 299: give another file"),
        ("context_length", 15, "^--max-tokens 300 is too few for --context-length 15: give at least --max-tokens 320$"),
        ("max_tokens", 0, "max_tokens must be at least 1, not 0"),
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path / "tokens", **{option: value})


def test_a_dataset_that_is_too_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_hugging_face(monkeypatch, TEXTS[:4])
    with pytest.raises(ValueError, match="has 41 tokens, but --context-length 6 needs at least 140: give at most "):
        make(tmp_path / "tokens")
    assert make(tmp_path / "tokens", context_length=1).context_length == 1  # as it says


def test_with_the_packages_themselves(tmp_path: Path) -> None:
    """A dataset and a tokenizer on disk, where the extra is installed: what the stand-ins above stand for."""
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<end>": 0, "be": 1, "not": 2, "or": 3, "to": 4, "that": 5, "is": 6, "the": 7, "question": 8}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(tmp_path / "tokenizer")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "rows.parquet")
    stream = [words[word] for text in TEXTS for word in [*text.split(), "<end>"]]
    for name in ("saved", "splits", "parquet"):
        task = make(
            tmp_path / f"{name}.tokens",
            dataset=str(tmp_path / name),
            tokenizer=str(tmp_path / "tokenizer"),
            max_tokens=120,
            context_length=4,
        )
        assert task.symbols == tuple(words)
        (batch,) = task.validation_batches()["validation"]
        assert batch.tokens.tolist() == [stream[108:112]]
        assert batch.targets.tolist() == [stream[109:113]]
