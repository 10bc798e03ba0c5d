"""The copy task: read random letters, then reproduce them after a separator."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from math import log
from string import ascii_letters

import numpy as np
import numpy.typing as npt
import torch

from ..ops.checks import IGNORE_INDEX
from .base import (
    TRAINING_STREAM,
    VALIDATION_STREAM,
    Batch,
    BatchSets,
    Task,
    random_generator,
    require_at_least,
)

_VALIDATION_BATCHES = 8


class Copy(Task):
    """Sequences `x_1 .. x_L | x_1 .. x_L` of uniformly random letters, each row with its own length L.

    The model reads `x_1 .. x_L | x_1 .. x_(L-1)` and is scored on the L letters that follow the separator and on
    nothing else. Rows are filled up at the end, where a recurrent model sees it only after the last scored letter.
    Training and validation lengths are uniform on 1 .. max_length; the set `longer` has the lengths max_length + 1 ..
    2 * max_length, of which training has none.

    batch_size: B, rows of a batch.
    max_length: longest L in training, where batches are [B, 2 * max_length].
    alphabet_size: letters there are, A. The vocabulary is the letters 0 .. A-1 and the separator A.
    seed: of the run, in [0, 2^64).

    Raises ValueError if batch_size or max_length is below 1 or alphabet_size below 2.

    Sources: Chaubard and Kochenderfer, arXiv 2505.17852; the task is Graves, Wayne and Danihelka's, arXiv 1410.5401.
    """

    def __init__(self, *, batch_size: int, max_length: int, alphabet_size: int, seed: int) -> None:
        require_at_least(1, batch_size=batch_size, max_length=max_length)
        require_at_least(2, alphabet_size=alphabet_size)
        self.batch_size = batch_size
        self.max_length = max_length
        self.alphabet_size = alphabet_size
        self.seed = seed
        self.separator = alphabet_size
        self.vocab_size = alphabet_size + 1
        self.symbols = (*islice(_letters(), alphabet_size), "|")
        self.reference_losses = {"chance": log(alphabet_size)}

    def batch(self, step: int) -> Batch:
        return self._draw(random_generator(self.seed, TRAINING_STREAM, step), 1, self.max_length)

    def validation_batches(self) -> BatchSets:
        lengths = {"validation": (1, self.max_length), "longer": (self.max_length + 1, 2 * self.max_length)}
        return {
            name: [
                self._draw(random_generator(self.seed, VALIDATION_STREAM, number * _VALIDATION_BATCHES + i), *ends)
                for i in range(_VALIDATION_BATCHES)
            ]
            for number, (name, ends) in enumerate(lengths.items())
        }

    def _draw(self, random: np.random.Generator, shortest: int, longest: int) -> Batch:
        """A batch [B, 2 * longest] with lengths uniform on shortest .. longest."""
        letters_BL = random.integers(self.alphabet_size, size=(self.batch_size, longest))
        length_B1 = random.integers(shortest, longest + 1, size=(self.batch_size, 1))
        time_BT = np.broadcast_to(np.arange(2 * longest), (self.batch_size, 2 * longest))

        def letter(index_BT: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            return np.take_along_axis(letters_BL, index_BT.clip(0, longest - 1), axis=1)

        reading = time_BT < length_B1
        answering = (time_BT >= length_B1) & (time_BT < 2 * length_B1)
        repeating = answering & (time_BT > length_B1)
        tokens_BT = np.where(reading, letter(time_BT), self.separator)
        tokens_BT = np.where(repeating, letter(time_BT - length_B1 - 1), tokens_BT)
        targets_BT = np.where(answering, letter(time_BT - length_B1), IGNORE_INDEX)
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT))


def _letters() -> Iterator[str]:
    """a to z, A to Z, then as many others as are asked for."""
    yield from ascii_letters
    yield from map(chr, count(0x4E00))
