"""The sort task: read random letters, then write them in alphabetical order."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from .algorithmic import Exercise, QuestionAnswer, Tokens


class Sort(QuestionAnswer):
    """Examples `x_1 .. x_L | y_1 .. y_L`, where y is x sorted by the alphabet, duplicates included.

    Options, lengths and errors are those of `Algorithmic`. Batches are [B, 2 L].

    Source: the priority sort of Graves, Wayne and Danihelka, arXiv 1410.5401, with the letters as their own priorities.
    """

    alphabet = ascii_letters
    predictable = True

    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        is_read = np.arange(letters_BL.shape[1]) < length_B1
        sorted_BL = np.sort(np.where(is_read, letters_BL, self.alphabet_size), axis=1)  # padding is sorted to the end
        return Exercise(letters_BL, length_B1, sorted_BL, length_B1)
