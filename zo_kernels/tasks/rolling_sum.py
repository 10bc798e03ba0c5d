"""The rolling-sum task: after each digit, write the sum of all digits so far."""

from __future__ import annotations

from string import ascii_letters, digits

import numpy as np
import torch

from ..ops.checks import IGNORE_INDEX
from .algorithmic import Algorithmic, Tokens
from .base import Batch


class RollingSum(Algorithmic):
    """Digits x_1 .. x_L with the target (x_1 + .. + x_t) mod alphabet_size at each position t.

    There is no separator: the answer follows each digit at once. Batches are [B, L], padded with zeros. Options,
    lengths and errors are those of `Algorithmic`.

    Source: Chaubard and Kochenderfer, arXiv 2505.17852.
    """

    alphabet = digits + ascii_letters
    predictable = True

    def examples(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Batch:
        is_read = np.arange(letters_BL.shape[1]) < length_B1
        sum_BL = letters_BL.cumsum(axis=1) % self.alphabet_size
        tokens_BL, targets_BL = np.where(is_read, letters_BL, 0), np.where(is_read, sum_BL, IGNORE_INDEX)
        return Batch(torch.from_numpy(tokens_BL), torch.from_numpy(targets_BL))
