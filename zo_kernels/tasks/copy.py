"""The copy task: read random letters, then reproduce them after a separator."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from .algorithmic import Exercise, QuestionAnswer, Tokens


class Copy(QuestionAnswer):
    """`x_1 .. x_L | x_1 .. x_L`; options, lengths and errors are those of `Algorithmic`. Batches are [B, 2 L].

    Sources: Chaubard and Kochenderfer, arXiv 2505.17852; the task is Graves, Wayne and Danihelka's, arXiv 1410.5401.
    """

    alphabet = ascii_letters
    predictable = False

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        return Exercise(letters_BL, length_B1, letters_BL, length_B1)
