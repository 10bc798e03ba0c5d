"""Turns text into tokens, one per character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .text_file import CodePoints, EncodedText, from_code_points, to_code_points
from .windows import Windows


class CharacterWindows(Windows):
    """Windows of text with the characters of a text as vocabulary, in code point order. Options are as in `Windows`."""

    _code_points: CodePoints

    def set_alphabet(self, text: EncodedText) -> None:
        """Makes the characters of a text the vocabulary."""
        self._code_points = text.code_points
        self.vocab_size = len(self._code_points)
        self.symbols = tuple(self.alphabet)

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


def require_characters(path: Path, text: EncodedText, least: int, context_length: int) -> None:
    """Raises ValueError, naming the file, if its text has fewer than `least` characters."""
    if len(text.tokens) < least:
        raise ValueError(
            f"{path} has {len(text.tokens)} characters, but context_length {context_length} needs at least {least}: "
            "give a longer file or a shorter context"
        )
