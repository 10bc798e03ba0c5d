"""The repeat-copy task: read random letters and a number, then write the letters that many times and an end marker."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from .algorithmic import Exercise, QuestionAnswer, Tokens, take
from .base import require_at_least

_MOST_REPEATS = 9


class RepeatCopy(QuestionAnswer):
    """Examples `x_1 .. x_L r | x_1 .. x_L  x_1 .. x_L  ... .`; the answer is r copies and the end marker.

    Batches are [B, (L + 1) + (max_repeats L + 1)]. The tokens are the letters, the separator, the numbers 1 ..
    max_repeats and the end marker. Options, lengths and errors are those of `Algorithmic`, and in addition:

    max_repeats: R; the number r is uniform on 1 .. R in every set.

    Raises ValueError if max_repeats is not in 1 .. 9.

    Source: Graves, Wayne and Danihelka, arXiv 1410.5401. There the number is a scalar, here it is a token.
    """

    alphabet = ascii_letters
    predictable = True

    def __init__(
        self,
        *,
        batch_size: int,
        max_length: int,
        alphabet_size: int,
        max_repeats: int,
        seed: int,
        longer_length: int | None = None,
        curriculum: int = 0,
    ) -> None:
        require_at_least(1, max_repeats=max_repeats)
        if max_repeats > _MOST_REPEATS:
            raise ValueError(f"max_repeats must be at most {_MOST_REPEATS}, not {max_repeats}")
        self.max_repeats = max_repeats
        super().__init__(
            batch_size=batch_size,
            max_length=max_length,
            alphabet_size=alphabet_size,
            seed=seed,
            longer_length=longer_length,
            curriculum=curriculum,
        )

    def marks(self) -> str:
        return "|" + "".join(map(str, range(1, self.max_repeats + 1))) + "."

    def answer_size(self) -> int:
        return self.alphabet_size + 1

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        longest = letters_BL.shape[1]
        repeats_B1 = random.integers(1, self.max_repeats + 1, size=length_B1.shape)
        place_Q = np.arange(longest + 1)
        question_BQ = np.where(place_Q == length_B1, self.separator + repeats_B1, take(letters_BL, place_Q[None]))
        place_A = np.arange(self.max_repeats * longest + 1)
        end_marker = self.separator + self.max_repeats + 1
        written_B1 = repeats_B1 * length_B1
        answer_BA = np.where(place_A < written_B1, take(letters_BL, place_A % length_B1), end_marker)
        return Exercise(question_BQ, length_B1 + 1, answer_BA, written_B1 + 1)
