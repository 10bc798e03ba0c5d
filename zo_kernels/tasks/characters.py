"""Turns text into tokens: one per character, or those of another codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .codecs import Codec, get_codec
from .text_file import CodePoints, EncodedText, Tokens, from_code_points, to_code_points
from .windows import Windows


class CharacterWindows(Windows):
    """Windows of text with the characters of a text as vocabulary, in code point order. Options are as in `Windows`.

    After `set_texts` the vocabulary is that of a codec instead.
    """

    _code_points: CodePoints
    _codec: Codec | None = None

    def set_alphabet(self, text: EncodedText) -> None:
        """Makes the characters of a text the vocabulary."""
        self._code_points = text.code_points
        self.vocab_size = len(self._code_points)
        self.symbols = tuple(self.alphabet)

    def tokens_of(self, text: EncodedText, path: Path, training: Path) -> Tokens:
        """The tokens of a held-out text, read from `path`.

        Raises ValueError if it has a character that the vocabulary, of the file `training`, lacks.
        """
        if unknown := from_code_points(np.setdiff1d(text.code_points, self._code_points)):
            raise ValueError(f"{path} has the character {unknown[0]!r}, which {training.name} lacks: clean it up")
        return text.tokens_in(self._code_points)

    def set_texts(self, paths: Sequence[Path], texts: Sequence[str], tokenizer: str | Codec) -> None:
        """Sets the texts for training, validation and testing, in the tokens of a codec.

        paths: what errors call the texts. tokenizer: a codec, or as for `get_codec`, which learns from the first text.

        Raises the errors of `get_codec`, and ValueError if a text has too few tokens for the context length.
        """
        codec = get_codec(tokenizer, texts[:1]) if isinstance(tokenizer, str) else tokenizer
        self._codec, self.tokenizer_json = codec, codec.stored
        self.symbols, self.vocab_size = codec.symbols, len(codec.symbols)
        sequences = [codec.encode(text) for text in texts]
        for path, tokens, part in zip(paths, sequences, ("training", "validation", "test"), strict=True):
            if len(tokens) <= self.context_length:
                raise ValueError(
                    f"{path} has {len(tokens)} tokens for the {part}, but context_length {self.context_length} needs "
                    f"at least {self.context_length + 1}: give a longer file or a shorter context"
                )
        self.set_tokens(*sequences)

    @property
    def alphabet(self) -> str:
        """The characters, in the order of their tokens."""
        return from_code_points(self._code_points)

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, int64 [T]. Raises ValueError if a character is not in the vocabulary."""
        if self._codec is not None:
            return torch.from_numpy(self._codec.encode(text).astype(np.int64))
        code_points = to_code_points(text)
        unknown = code_points[~np.isin(code_points, self._code_points)]
        if len(unknown) > 0:
            raise ValueError(f"the vocabulary has no character {from_code_points(unknown[:1])!r}")
        return torch.from_numpy(np.searchsorted(self._code_points, code_points))

    def decode(self, tokens_T: Tensor) -> str:
        """The text of the tokens [T], of any integer dtype."""
        if self._codec is not None:
            return self._codec.decode(tokens_T.tolist())
        return from_code_points(self._code_points[tokens_T.cpu().numpy()])
