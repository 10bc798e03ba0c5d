"""Bytes, byte-pair encoding and tokenizer.json files in the tasks text, ptb and pairs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.make import write_ptb
from zo_kernels.tasks import Pairs, PennTreebank, Text
from zo_kernels.tasks.codecs import Bytes, Subwords, get_codec

SENTENCE = "to be or not to be, thát is the question\n"


def make(folder: Path, tokenizer: Any) -> Text:
    (folder / "book.txt").write_text(SENTENCE * 40, encoding="utf-8")
    return Text(data=folder / "book.txt", batch_size=4, context_length=6, seed=0, tokenizer=tokenizer)


def test_bytes() -> None:
    codec = get_codec("bytes", [])
    assert codec.encode("añ\n").tolist() == [97, 0xC3, 0xB1, 10]
    assert codec.decode([97, 0xC3, 0xB1, 10]) == "añ\n"
    assert codec.decode([0xC3]) == "\ufffd"
    assert len(set(codec.symbols)) == len(codec.symbols) == 256


def test_characters_is_the_default(tmp_path: Path) -> None:
    assert torch.equal(make(tmp_path, "characters").batch(0).tokens, make(tmp_path, None).batch(0).tokens)


def test_byte_pairs_are_learned_from_the_training_part_alone(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    train = make(tmp_path, "bpe:300")
    assert train.vocab_size == len(train.symbols) <= 300
    assert train.encode("question").numel() < 4
    assert train.decode(train.encode("añ €\n\nto be")) == "añ €\n\nto be"
    (tmp_path / "book.txt").write_text(SENTENCE * 36 + "zyxzyxzyx\n" * 16, encoding="utf-8")
    other = Text(data=tmp_path / "book.txt", batch_size=4, context_length=6, seed=0, tokenizer="bpe:300")
    assert other.encode("zyxzyx").numel() == 6
    assert make(tmp_path, "bpe:300").tokenizer_json == train.tokenizer_json


def test_a_stored_tokenizer_and_its_file_are_the_learned_one(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    learned = make(tmp_path, "bpe:280")
    assert learned.tokenizer_json is not None
    (tmp_path / "tokenizer.json").write_text(learned.tokenizer_json, encoding="utf-8")
    for again in (Subwords(learned.tokenizer_json), str(tmp_path / "tokenizer.json")):
        assert torch.equal(make(tmp_path, again).batch(3).tokens, learned.batch(3).tokens)
        assert make(tmp_path, again).symbols == learned.symbols


def test_long_texts_are_cut_at_the_ends_of_lines(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    codec = get_codec("bpe:270", [SENTENCE])
    text = SENTENCE * 4000
    assert codec.encode(text).tolist() == codec.encode(SENTENCE).tolist() * 4000
    assert codec.decode(codec.encode("é" * 200_000).tolist()) == "é" * 200_000


def test_ptb(tmp_path: Path) -> None:
    write_ptb(tmp_path, SENTENCE * 3, SENTENCE, "ß" * 20)
    task = PennTreebank(data=tmp_path, batch_size=2, context_length=6, seed=0, tokenizer="bytes")
    assert task.decode(task.test_batches()["test"][0].tokens[0]) == "ß" * 3
    with pytest.raises(
        ValueError, match=r"ptb.train.txt has 126 tokens for the training, but context_length 126 needs"
    ):
        PennTreebank(data=tmp_path, batch_size=2, context_length=126, seed=0, tokenizer="bytes")


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:260"])
def test_pairs_have_their_marks_after_the_tokens(tokenizer: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "pairs.csv").write_text("in,out\n" + "añ,bb\n" * 20, encoding="utf-8")
    columns = {"input": "in", "target": "out", "max_length": 9}
    task = Pairs(data=tmp_path / "pairs.csv", **columns, batch_size=1, seed=0, tokenizer=tokenizer)
    codec = Bytes() if task.tokenizer_json is None else Subwords(task.tokenizer_json)
    separator, end = len(codec.symbols), len(codec.symbols) + 1
    assert task.symbols == (*codec.symbols, "\t", "\n")
    question, answer = codec.encode("añ").tolist(), codec.encode("bb").tolist()
    assert task.batch(0).tokens.tolist() == [[*question, separator, *answer]]
    assert task.batch(0).targets.tolist() == [[*[-100] * len(question), *answer, end]]


def test_a_tokenizer_needs_its_library_and_a_file_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "other.json").write_text(json.dumps({"model": "x"}))
    for name, message in (
        ("bpe:255", "tokenizer bpe:N must have a number of tokens N of at least 256, not 255"),
        ("bpe:", "at least 256, not none"),
        ("bpe:many", "at least 256, not many"),
        ("words", "tokenizer must be characters, bytes, bpe:N or a tokenizer.json: cannot read words: No such file"),
        (str(tmp_path / "other.json"), "other.json is not the tokenizer.json of a tokenizer \\("),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path, name)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ValueError, match=r"bpe:300 needs the package tokenizers: pip install 'zo_kernels\[tokenizers\]'"
    ):
        make(tmp_path, "bpe:300")


def test_parts_and_another_text_to_validate_on(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a" * 80 + "b" * 10 + "c" * 10)
    (tmp_path / "other.txt").write_text("é" * 10, encoding="utf-8")
    options: dict[str, Any] = {"batch_size": 9, "context_length": 4, "seed": 0, "tokenizer": "bytes"}

    def held_out(**more: Any) -> list[set[str]]:
        task = Text(data=tmp_path / "book.txt", **options, **more)
        sets = [task.validation_batches()["validation"], task.test_batches()["test"]]
        return [{task.decode(row) for batch in batches for row in batch.tokens} for batches in sets]

    assert held_out(parts="0.8,0.1,0.1") == [{"bbbb"}, {"cccc"}]
    assert held_out(parts="0.8,0.1,0.1", validation_data=tmp_path / "other.txt") == [{"éé"}, {"cccc"}]
