"""Turns text into tokens, one per character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .text_file import CodePoints, EncodedText, Tokens, from_code_points, to_code_points
from .windows import Windows


class CharacterWindows(Windows):
    """Windows of text with the characters of a text as vocabulary, in code point order. Options are as in `Windows`."""

    _code_points: CodePoints

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

    @property
    def alphabet(self) -> str:
        """The characters, in the order of their tokens."""
        return from_code_points(self._code_points)

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, int64 [T]. Raises ValueError if a character is not in the vocabulary."""
        code_points = to_code_points(text)
        unknown = code_points[~np.isin(code_points, self._code_points)]
        if len(unknown) > 0:
            raise ValueError(f"the vocabulary has no character {from_code_points(unknown[:1])!r}")
        return torch.from_numpy(np.searchsorted(self._code_points, code_points))

    def decode(self, tokens_T: Tensor) -> str:
        """The text of the tokens [T], of any integer dtype."""
        return from_code_points(self._code_points[tokens_T.cpu().numpy()])
