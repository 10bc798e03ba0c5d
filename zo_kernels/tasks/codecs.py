"""Turns text into tokens that are not characters, and back: bytes, or the tokens of a tokenizer.json."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from .text_file import read_bytes, token_dtype

Tokens = npt.NDArray[np.unsignedinteger]

CHARACTERS = "characters"
_BLOCK = 1 << 16
"""Characters that are encoded at once, up to the last end of a line among them."""


class Codec(ABC):
    """A vocabulary of tokens, and the way from text to them and back.

    symbols: a string for each token, [V].
    stored: text of the tokenizer.json that holds all of it; None if there is nothing to hold.
    """

    symbols: tuple[str, ...]
    stored: str | None = None

    @abstractmethod
    def encode(self, text: str) -> Tokens:
        """The tokens of a text, [T], of the `token_dtype` of V."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens. What is no character in UTF-8 becomes U+FFFD."""


class Bytes(Codec):
    """The bytes of the UTF-8 text."""

    symbols = tuple(f"<0x{byte:02X}>" for byte in range(256))

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


class Subwords(Codec):
    """The tokens of a tokenizer of Hugging Face's library `tokenizers`.

    stored: text of its tokenizer.json. name: what errors call it. Raises ValueError if the text is of no tokenizer, or
    the library is missing.
    """

    def __init__(self, stored: str, name: str = "tokenizer.json") -> None:
        self.stored = stored
        try:
            self._tokenizer = _library(name).Tokenizer.from_str(stored)
        except Exception as error:  # the library raises nothing narrower
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{name} is not the tokenizer.json of a tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if size == 0:
            raise ValueError(f"{name} has no tokens: give another tokenizer")
        self.symbols = tuple(self._tokenizer.id_to_token(token) or f"<unused {token}>" for token in range(size))

    def encode(self, text: str) -> Tokens:
        dtype = token_dtype(len(self.symbols))
        found = (self._tokenizer.encode(block, add_special_tokens=False).ids for block in _blocks(text))
        return np.concatenate([np.zeros(0, dtype), *(np.array(ids, dtype) for ids in found)])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))


def get_codec(name: str, texts: Iterable[str]) -> Codec:
    """Returns a codec by its name: "bytes", "bpe:N", or the path of a tokenizer.json.

    texts: what bpe:N learns its N tokens from.

    Raises ValueError if N is below 256, the file can't be read or is no tokenizer's, or the library `tokenizers` is
    missing.
    """
    if name == "bytes":
        return Bytes()
    if name.startswith("bpe:"):
        if not re.fullmatch(r"[1-9][0-9]{0,8}", size := name[4:]) or int(size) < len(Bytes.symbols):
            raise ValueError(f"tokenizer bpe:N must have a number of tokens N of at least 256, not {size or 'none'}")
        return Subwords(_train(name, int(size), texts), name)
    try:
        stored = read_bytes(Path(name)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not the tokenizer.json of a tokenizer (it is not UTF-8 text)") from error
    except ValueError as error:
        raise ValueError(f"tokenizer must be characters, bytes, bpe:N or a tokenizer.json: {error}") from error
    return Subwords(stored, name)


def _train(name: str, size: int, texts: Iterable[str]) -> str:
    """Learns byte-level byte-pair encoding. Returns the text of its tokenizer.json."""
    library = _library(name)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(chain.from_iterable(map(_blocks, texts)), trainer)
    return str(tokenizer.to_str())


def _library(name: str) -> ModuleType:
    try:
        return import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the tokenizer {name} needs the package {error.name}: pip install 'zo_kernels[tokenizers]'"
        ) from error


def _blocks(text: str) -> Iterator[str]:
    """Cuts a text, since the library takes far more memory for a text than its tokens."""
    start = 0
    while start < len(text):
        end = start + _BLOCK
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end
