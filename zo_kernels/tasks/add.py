"""The addition task: read two numbers, then write their sum digit by digit."""

from __future__ import annotations

from string import ascii_letters, digits

import numpy as np

from .algorithmic import Exercise, QuestionAnswer, Tokens, take


class Add(QuestionAnswer):
    """Examples `a + b = c` in base alphabet_size, most significant digit first. a and b have L digits, c has L + 1.

    All digits of a and b are uniform, so numbers may begin with zeros: 07+35=042. Batches are [B, (2 L + 1) + (L + 1)].
    The tokens are the digits, then `=`, which is the separator, then `+`. Options, lengths and errors are those of
    `Algorithmic`.

    Source: Zaremba and Sutskever, arXiv 1410.4615. Their numbers of L digits have no leading zeros.
    """

    alphabet = digits + ascii_letters
    predictable = True

    def marks(self) -> str:
        return "=+"

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        shape = letters_BL.shape
        other_BL = random.integers(self.alphabet_size, size=shape)
        place_Q = np.arange(2 * shape[1] + 1)[None]
        question_BQ = np.where(place_Q < length_B1, take(letters_BL, place_Q), take(other_BL, place_Q - length_B1 - 1))
        question_BQ[place_Q == length_B1] = self.separator + 1

        column_BL = np.where(np.arange(shape[1]) < length_B1, letters_BL + other_BL, 0)
        answer_BA = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
        for place in reversed(range(shape[1])):  # until then answer[place + 1] is the carry into its column
            carry_B, answer_BA[:, place + 1] = np.divmod(
                column_BL[:, place] + answer_BA[:, place + 1], self.alphabet_size
            )
            answer_BA[:, place] = carry_B
        return Exercise(question_BQ, 2 * length_B1 + 1, answer_BA, length_B1 + 1)
