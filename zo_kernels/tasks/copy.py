"""The copy task: read random letters, then reproduce them after a separator."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from .algorithmic import Exercise, QuestionAnswer, Tokens


class Copy(QuestionAnswer):
    """Examples `x_1 .. x_L | x_1 .. x_L`. Batches are [B, 2 L].

    Options, lengths and errors are those of `Algorithmic`.

    Sources: Graves, Wayne and Danihelka, arXiv 1410.5401; Chaubard and Kochenderfer, arXiv 2505.17852.
    """

    alphabet = ascii_letters
    predictable = False

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        return Exercise(letters_BL, length_B1, letters_BL, length_B1)
