"""The text task: predict the next character of a file."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import TRAINING_STREAM, Batch, BatchSets, Task, random_generator, require_at_least

_PARTS = 20
"""One part in 20 of the file, 5 %, is for validation, and one for the test."""
_EVALUATED_CHARACTERS = 1 << 16


class Text(Task):
    """Character-level language modelling of one UTF-8 file; losses are nats per character.

    The vocabulary is the file's characters, in code point order. The first 90 % of the file are for training, the next
    5 % for validation, the last 5 % for the test. A training batch is windows at random places. The held-out sets are
    windows side by side, spread evenly over their part if it has more than 65536 characters.

    data: path of the file.
    batch_size: B, windows of a batch.
    context_length: T, characters of a window.
    seed: of the run, in [0, 2^64).

    Raises ValueError if the file cannot be read, is empty, is not UTF-8 or is too short for the context length, or an
    option is below 1.
    """

    def __init__(self, *, data: str | Path, batch_size: int, context_length: int, seed: int) -> None:
        require_at_least(1, batch_size=batch_size, context_length=context_length)
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        text = _read(Path(data))
        least = _PARTS * (context_length + 1)
        if len(text) < least:
            raise ValueError(
                f"{data} has {len(text)} characters, but context_length {context_length} needs at least {least}: "
                "give a longer file or a shorter context"
            )
        self._alphabet, tokens = np.unique(_code_points(text), return_inverse=True)
        self.vocab_size = len(self._alphabet)
        self.symbols = tuple(self.alphabet)
        part = len(tokens) // _PARTS
        self._training, self._validation, self._test = np.split(tokens, [-2 * part, -part])
        share = np.bincount(self._training) / len(self._training)
        entropy = -float(np.sum(share[share > 0] * np.log(share[share > 0])))
        self.reference_losses = {"chance": log(self.vocab_size), "unigram entropy": entropy}

    @property
    def alphabet(self) -> str:
        """The characters, in the order of their tokens."""
        return _as_text(self._alphabet)

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, int64 [T]. Raises ValueError if the file has no such character."""
        code_points = _code_points(text)
        unknown = code_points[~np.isin(code_points, self._alphabet)]
        if len(unknown) > 0:
            raise ValueError(f"the file has no character {_as_text(unknown[:1])!r}")
        return torch.from_numpy(np.searchsorted(self._alphabet, code_points))

    def decode(self, tokens_T: Tensor) -> str:
        """The text of tokens of any integer dtype, [T]."""
        return _as_text(self._alphabet[tokens_T.cpu().numpy()])

    def batch(self, step: int) -> Batch:
        random = random_generator(self.seed, TRAINING_STREAM, step)
        starts_B = random.integers(len(self._training) - self.context_length, size=self.batch_size)
        return self._windows(self._training, starts_B)

    def validation_batches(self) -> BatchSets:
        return {"validation": self._spread(self._validation)}

    def test_batches(self) -> BatchSets:
        return {"test": self._spread(self._test)}

    def _spread(self, part: npt.NDArray[np.int64]) -> list[Batch]:
        """Batches of windows side by side or, where they would be too many, evenly spread over the part."""
        windows = (len(part) - 1) // self.context_length
        kept = min(windows, max(1, _EVALUATED_CHARACTERS // self.context_length))
        starts = np.linspace(0, windows - 1, kept).astype(np.int64) * self.context_length
        return [self._windows(part, starts[i : i + self.batch_size]) for i in range(0, kept, self.batch_size)]

    def _windows(self, part: npt.NDArray[np.int64], starts_B: npt.NDArray[np.int64]) -> Batch:
        window = torch.from_numpy(part[starts_B[:, None] + np.arange(self.context_length + 1)])
        return Batch(window[:, :-1], window[:, 1:])


def _read(path: Path) -> str:
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


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _as_text(code_points: npt.NDArray[np.uint32]) -> str:
    return code_points.astype("<u4").tobytes().decode("utf-32-le")
