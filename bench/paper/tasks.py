"""The tasks of Table 2 as the code of the paper's authors has them: what is scored, and 30 tokens, of which some are
never used.
"""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any, ClassVar

import numpy as np
import torch

from zo_kernels.models import IGNORE_INDEX
from zo_kernels.tasks import Batch
from zo_kernels.tasks.algorithmic import Exercise, QuestionAnswer, Tokens, take
from zo_kernels.tasks.base import TRAINING_STREAM, random_generator
from zo_kernels.tasks.copy import Copy
from zo_kernels.tasks.reverse import Reverse

_VOCABULARY = 30


class _Counted(QuestionAnswer):
    """Examples of which the answer is scored without its first token, and with two blanks after its last.

    Batches are [B, Q + A + 2]. Options, lengths and errors are those of `Algorithmic`. The reference loss chance is
    that of all tokens, ln 30 = 3.40, although a model soon knows which of them occur.

    Source: the code of Chaubard and Kochenderfer for arXiv 2505.17852.
    """

    defaults: ClassVar[dict[str, Any]] = {"max_length": 10, "longer_length": 60, "curriculum": 0}

    @property
    def blank(self) -> int:
        """The token after an answer."""
        return self.separator

    def answer_size(self) -> int:
        return self.vocab_size

    def examples(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Batch:
        question_BQ, read_B1, answer_BA, answered_B1 = self.exercise(random, letters_BL, length_B1)
        length = question_BQ.shape[1] + answer_BA.shape[1] + 2
        time_BT = np.broadcast_to(np.arange(length + 1), (len(letters_BL), length + 1))
        answering = (time_BT > read_B1) & (time_BT <= read_B1 + answered_B1)
        stream_BT = np.where(time_BT < read_B1, take(question_BQ, time_BT), self.blank)
        stream_BT = np.where(time_BT == read_B1, self.separator, stream_BT)
        stream_BT = np.where(answering, take(answer_BA, time_BT - read_B1 - 1), stream_BT)
        scored = (time_BT > read_B1) & (time_BT <= read_B1 + answered_B1 + 1)
        targets_BT = np.where(scored[:, :-1], stream_BT[:, 1:], IGNORE_INDEX)
        return Batch(torch.from_numpy(stream_BT[:, :-1].copy()), torch.from_numpy(targets_BT))


class CountedCopy(_Counted, Copy):
    """Examples `cab|cab||` of lower-case letters."""

    alphabet = ascii_lowercase
    defaults: ClassVar[dict[str, Any]] = {**_Counted.defaults, "alphabet_size": 26}

    def marks(self) -> str:
        return "|,.;!"[: _VOCABULARY - self.alphabet_size]


class CountedReverse(CountedCopy, Reverse):
    """Examples `cab|bac||` of lower-case letters."""

    exercise = Reverse.exercise


class LongestCopy(CountedCopy):
    """Examples of max_length letters in training. Validation is that of `CountedCopy`."""

    def batch(self, step: int) -> Batch:
        random, length = random_generator(self.seed, TRAINING_STREAM, step), self.max_length
        return self._draw(random, length, length, length)


class LongestReverse(CountedReverse):
    """Examples of max_length letters in training. Validation is that of `CountedReverse`."""

    batch = LongestCopy.batch


class SumOfDigits(_Counted):
    """Examples `3+4+9=16  ` of L digits."""

    alphabet = "0123456789"
    predictable = False
    defaults: ClassVar[dict[str, Any]] = {**_Counted.defaults, "alphabet_size": 10}

    def marks(self) -> str:
        return "=+ " + ascii_lowercase[: _VOCABULARY - 3 - self.alphabet_size]

    @property
    def blank(self) -> int:
        return self.alphabet_size + 2

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        most = letters_BL.shape[1]
        sum_B1 = np.where(np.arange(most) < length_B1, letters_BL, 0).sum(axis=1, keepdims=True)
        digits_B1 = 1 + sum((sum_B1 >= 10**power).astype(np.int64) for power in range(1, len(str(9 * most))))
        power_BA = digits_B1 - 1 - np.arange(len(str(9 * most)))
        answer_BA = sum_B1 // 10 ** power_BA.clip(0) % 10
        place_1Q = np.arange(2 * most - 1)[None]
        question_BQ = np.where(place_1Q % 2 == 0, take(letters_BL, place_1Q // 2), self.alphabet_size + 1)
        return Exercise(question_BQ, 2 * length_B1 - 1, answer_BA, digits_B1)
