"""Writes the tokens of a Hugging Face dataset to a file, and reads them."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from ..run.files import open_regular, write_atomically

_FORMAT = "zo_kernels tokens"
_ERRORS = (OSError, ValueError, RuntimeError, ImportError)
"""Raised by datasets and transformers for an unknown or unusable name, or without a network."""


class Source(NamedTuple):
    """Source of the tokens of a file. The same source gives the same tokens.

    dataset: name on the Hugging Face Hub, or a folder that `datasets` can load. The column `text` of its split `train`
        is read, from the first row on.
    tokenizer: name on the Hub, or a folder.
    max_tokens: largest number of tokens to read.
    """

    dataset: str
    tokenizer: str
    max_tokens: int


class TokenFile(NamedTuple):
    """The content of a token file.

    tokens: [N], mapped from the file; uint16, or uint32 for a vocabulary of more than 65536 tokens.
    symbols: [V], the tokenizer's string for each token.
    tokenizer_json: text of the tokenizer.json; None for a tokenizer that has none, and in files of version 0.1.
    """

    tokens: npt.NDArray[np.integer]
    symbols: tuple[str, ...]
    tokenizer_json: str | None = None


def read_tokens(path: Path, source: Source) -> TokenFile:
    """Reads a token file. Raises ValueError if it can't be read or was not made from `source`."""
    try:
        os.close(open_regular(path, follow=True))  # raises a clearer error than safetensors, and waits for no pipe
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"{path} is not a file of tokens: give the name of one, or of a new file")
            tokens = file.get_tensor("tokens").numpy()  # safetensors would copy it to memory for NumPy
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of tokens ({error}): give the name of one, or of a new file") from error
    for name, asked in source._asdict().items():
        if metadata[name] != str(asked):
            raise ValueError(f"{path} has the tokens of {name} {metadata[name]}, not {asked}: give another file")
    return TokenFile(tokens, tuple(json.loads(metadata["symbols"])), metadata.get("tokenizer_json"))


def make_tokens(path: Path, source: Source) -> None:
    """Writes the tokens of a source to a file, atomically.

    Rows are streamed, and their tokens are kept in memory until the file is written. Each row is followed by the
    tokenizer's end-of-sequence token, if it has one.

    Raises ValueError if `datasets` or `transformers` is not installed, the dataset or the tokenizer can't be loaded,
    the dataset has no column `text`, or the file can't be written.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    datasets, transformers = _require("datasets", path), _require("transformers", path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.tokenizer)
    except _ERRORS as error:
        raise ValueError(f"cannot load the tokenizer {source.tokenizer}: {_first_line(error)}") from error
    vocabulary = tokenizer.get_vocab()
    symbols = [""] * (max(vocabulary.values()) + 1)
    for symbol, token in vocabulary.items():
        symbols[token] = symbol
    tokens = array("H" if len(symbols) <= 1 << 16 else "I")
    for text in _texts(datasets, source.dataset):
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        tokens.extend(ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id])
        if len(tokens) >= source.max_tokens:
            break
    metadata = {name: str(value) for name, value in source._asdict().items()}
    metadata |= {"format": _FORMAT, "symbols": json.dumps(symbols)}
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        metadata["tokenizer_json"] = fast.to_str()
    taken = np.asarray(tokens)[: source.max_tokens]
    try:
        write_atomically(path, lambda file: file.write_bytes(safetensors.numpy.save({"tokens": taken}, metadata)))
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def _require(module: str, path: Path) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"there is no file {path}, and to make it the package {error.name} is missing: "
            "pip install 'zo_kernels[data]'"
        ) from error


def _texts(datasets: Any, name: str) -> Iterator[str]:
    """The column `text` of each row of a dataset, in order."""
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(name)
            if isinstance(rows, dict):
                if "train" not in rows:
                    raise ValueError(f"it has no split train, only {', '.join(rows)}")
                rows = rows["train"]
        else:
            rows = datasets.load_dataset(name, split="train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise ValueError(f"it has no column text, only {', '.join(row)}")
            yield row["text"]
    except _ERRORS as error:
        raise ValueError(f"cannot load the dataset {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
