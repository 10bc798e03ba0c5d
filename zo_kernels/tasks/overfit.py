"""The overfitting task: memorise one batch of random letters."""

from __future__ import annotations

from math import log
from string import ascii_letters

import torch

from .algorithmic import characters
from .base import TRAINING_STREAM, Batch, BatchSets, Task, random_generator, require_at_least


class Overfit(Task):
    """Next-token prediction on one fixed batch of uniformly random letters, the same at every step.

    There is nothing to generalise, so the training loss is the result. The set `validation` is the training batch.

    batch_size: B, number of rows of the batch.
    context_length: T; the batch is [B, T], and all its positions are scored.
    alphabet_size: V, number of letters.
    seed: the run seed, in [0, 2^64).

    Raises ValueError if batch_size or context_length is below 1 or alphabet_size below 2.

    Source: Chaubard and Kochenderfer, arXiv 2505.17852.
    """

    def __init__(self, *, batch_size: int, context_length: int, alphabet_size: int, seed: int) -> None:
        require_at_least(1, batch_size=batch_size, context_length=context_length)
        require_at_least(2, alphabet_size=alphabet_size)
        self.vocab_size = alphabet_size
        self.symbols = characters(ascii_letters, alphabet_size)
        self.reference_losses = {"chance": log(alphabet_size)}
        random = random_generator(seed, TRAINING_STREAM, 0)
        stream = torch.from_numpy(random.integers(alphabet_size, size=(batch_size, context_length + 1)))
        self._batch = Batch(stream[:, :-1], stream[:, 1:])

    def batch(self, step: int) -> Batch:
        return self._batch

    def validation_batches(self) -> BatchSets:
        return {"validation": [self._batch]}
