"""Every task, small, for what all of them promise."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from zo_kernels.tasks import TASKS, Task

ALGORITHMIC = ("copy", "reverse", "sort", "repeat-copy", "add", "rolling-sum")


def algorithmic(name: str, **options: Any) -> Any:
    """An algorithmic task; what is not said is small."""
    defaults = {"batch_size": 4, "max_length": 5, "alphabet_size": 4, "seed": 0}
    if name == "repeat-copy":
        defaults["max_repeats"] = 3
    return TASKS[name](**{**defaults, **options})


def any_task(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Task:
    """A task, with its files in the folder."""
    if name in ALGORITHMIC:
        return algorithmic(name, seed=seed)
    if name == "overfit":
        return TASKS[name](batch_size=2, context_length=30, alphabet_size=4, seed=seed)
    if name == "pairs":
        file = folder / "pairs.csv"
        file.write_text("question,answer\n" + "".join(f"{i},{i * i}\n" for i in range(200)))
        columns = {"input": "question", "target": "answer"}
        return TASKS[name](data=file, **columns, batch_size=4, max_length=20, seed=seed)
    if name == "series":
        file = folder / "series.csv"
        file.write_text("x,y\n" + "".join(f"{i % 7},{i % 5}\n" for i in range(400)))
        return TASKS[name](data=file, target="y", batch_size=4, context_length=6, seed=seed)
    options: dict[str, Any] = {"data": folder, "batch_size": 4, "context_length": 6, "seed": seed}
    sentence = "to be or not to be, that is the question\n"
    if name == "text":
        options["data"] = folder / "book.txt"
        options["data"].write_text(sentence * 20)
    elif name == "ptb":
        write_ptb(folder, sentence * 20, sentence * 2, sentence * 3)
    else:
        stub_hugging_face(monkeypatch, [sentence] * 30)
        options |= {"data": folder / "tokens", "dataset": "words", "tokenizer": "letters", "max_tokens": 1000}
    return TASKS[name](**options)


def write_ptb(folder: Path, train: str, valid: str, test: str) -> None:
    for part, text in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"ptb.{part}.txt").write_text(text, encoding="utf-8")


class LetterTokenizer:
    """Tokens 0 to 127 are ASCII, 128 ends a text; further tokens never occur."""

    def __init__(self, vocab_size: int = 129, eos_token_id: int | None = 128) -> None:
        self.eos_token_id = eos_token_id
        self._vocab_size = vocab_size

    def get_vocab(self) -> dict[str, int]:
        return {f"<{token}>": token for token in reversed(range(self._vocab_size))}

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        assert not add_special_tokens
        return list(text.encode("ascii"))


def stub_hugging_face(
    monkeypatch: pytest.MonkeyPatch, texts: Any, tokenizer: LetterTokenizer | None = None
) -> dict[str, list[Any]]:
    """Puts stand-ins in the place of datasets and transformers: rows of the texts, or the rows themselves.

    Returns the calls made: of load_dataset and of load_from_disk.
    """
    calls: dict[str, list[Any]] = {"load_dataset": [], "load_from_disk": []}
    rows = ({"text": text} if isinstance(text, str) else text for text in texts)

    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        assert (split, streaming) == ("train", True)
        calls["load_dataset"].append(name)
        return rows

    def load_from_disk(name: str) -> Any:
        calls["load_from_disk"].append(name)
        return texts if isinstance(texts, dict) else rows

    datasets, transformers = ModuleType("datasets"), ModuleType("transformers")
    vars(datasets).update(load_dataset=load_dataset, load_from_disk=load_from_disk)
    tokenizer = tokenizer or LetterTokenizer()
    vars(transformers).update(AutoTokenizer=SimpleNamespace(from_pretrained=lambda name: tokenizer))
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    return calls
