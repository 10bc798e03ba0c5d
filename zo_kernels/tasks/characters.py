"""Turns text into tokens, one per character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .windows import Windows


class CharacterWindows(Windows):
    """Windows of text with the characters of a text as vocabulary, in code point order. Options are as in `Windows`."""

    _code_points: npt.NDArray[np.uint32]

    def set_alphabet(self, text: str) -> None:
        """Makes the characters of a text the vocabulary."""
        self._code_points = np.unique(_code_points(text))
        self.vocab_size = len(self._code_points)
        self.symbols = tuple(self.alphabet)

    @property
    def alphabet(self) -> str:
        """The characters, in the order of their tokens."""
        return _as_text(self._code_points)

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, int64 [T]. Raises ValueError if a character is not in the vocabulary."""
        code_points = _code_points(text)
        unknown = code_points[~np.isin(code_points, self._code_points)]
        if len(unknown) > 0:
            raise ValueError(f"the vocabulary has no character {_as_text(unknown[:1])!r}")
        return torch.from_numpy(np.searchsorted(self._code_points, code_points))

    def decode(self, tokens_T: Tensor) -> str:
        """The text of the tokens [T], of any integer dtype."""
        return _as_text(self._code_points[tokens_T.cpu().numpy()])


def read_text(path: Path) -> str:
    """Reads a UTF-8 file. Raises ValueError if it can't be read, is not UTF-8 or is empty."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} can't be decoded): convert it to UTF-8"
        ) from error
    if not text:
        raise ValueError(f"{path} is empty: give a text file to learn from")
    return text


def require_characters(path: Path, text: str, least: int, context_length: int) -> None:
    """Raises ValueError, naming the file, if its text has fewer than `least` characters."""
    if len(text) < least:
        raise ValueError(
            f"{path} has {len(text)} characters, but context_length {context_length} needs at least {least}: "
            "give a longer file or a shorter context"
        )


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _as_text(code_points: npt.NDArray[np.uint32]) -> str:
    return code_points.astype("<u4").tobytes().decode("utf-32-le")
