"""The reverse task: read random letters, then write them in reverse order."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from .algorithmic import Exercise, QuestionAnswer, Tokens, take


class Reverse(QuestionAnswer):
    """Examples `x_1 .. x_L | x_L .. x_1`. Batches are [B, 2 L].

    Options, lengths and errors are those of `Algorithmic`.

    Source: Chaubard and Kochenderfer, arXiv 2505.17852.
    """

    alphabet = ascii_letters
    predictable = False

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        backwards_BL = take(letters_BL, length_B1 - 1 - np.arange(letters_BL.shape[1]))
        return Exercise(letters_BL, length_B1, backwards_BL, length_B1)
