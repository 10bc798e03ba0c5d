"""Base class of the language modelling tasks, which use windows of long token sequences."""

from __future__ import annotations

from math import log
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ..ops.checks import IGNORE_INDEX
from .base import TRAINING_STREAM, Batch, BatchSets, Task, curriculum_length, random_generator, require_at_least
from .parts import DEFAULT_PARTS, Parts

Tokens = npt.NDArray[np.integer]
Rows = npt.NDArray[np.number]
"""Tokens [N], or what else windows are cut of: the first dimension is time."""

_COUNTED_AT_ONCE = 1 << 20


class Windows(Task):
    """Next-token prediction on windows of three token sequences, for training, validation and testing.

    A training batch consists of windows at random places, with all positions scored. The held-out sets consist of
    adjacent windows, or of windows spread evenly if the sequence has more than eval_tokens tokens. All batches
    are [B, T].

    batch_size: B, number of windows of a batch.
    context_length: T, number of tokens of a window.
    seed: the run seed, in [0, 2^64).
    curriculum: number of steps over which the scored part of a training window grows from its first token to all of it;
        0 for no curriculum.
    eval_tokens: number of tokens of a held-out set, but at least one window; None: `evaluated_tokens`.
    stateful: windows of a batch are not at random places. Row b of step 0 begins b / B of the way into the text, and
        each row goes on where it ended at the step before, at the end of the text from its beginning again.

    Raises ValueError if batch_size, context_length or eval_tokens is below 1 or curriculum below 0.
    """

    evaluated_tokens: ClassVar[int] = 1 << 16

    _training: Rows
    _validation: Rows
    _test: Rows

    def __init__(
        self,
        batch_size: int,
        context_length: int,
        seed: int,
        curriculum: int,
        eval_tokens: int | None,
        stateful: bool,
    ) -> None:
        require_at_least(1, batch_size=batch_size, context_length=context_length, eval_tokens=eval_tokens or 1)
        require_at_least(0, curriculum=curriculum)
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.curriculum = curriculum
        self.stateful = stateful
        self.eval_tokens = self.evaluated_tokens if eval_tokens is None else eval_tokens

    def set_tokens(self, training: Tokens, validation: Tokens, test: Tokens) -> None:
        """Sets the sequences, each of at least T + 1 tokens of any integer dtype. vocab_size must be set before."""
        self._training, self._validation, self._test = training, validation, test
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for start in range(0, len(training), _COUNTED_AT_ONCE):  # in pieces, since bincount copies its input to int64
            counts += np.bincount(training[start : start + _COUNTED_AT_ONCE], minlength=self.vocab_size)
        share = counts / len(training)
        entropy = -float(np.sum(share[share > 0] * np.log(share[share > 0])))
        self.reference_losses = {"chance": log(self.vocab_size), "unigram entropy": entropy}

    def set_one_sequence(self, tokens: Tokens, parts: Parts = DEFAULT_PARTS) -> None:
        """Sets one sequence: its first part for training, the next for validation, the last for testing."""
        training, validation, _ = parts.sizes(len(tokens))
        self.set_tokens(*np.split(tokens, [training, training + validation]))

    def batch(self, step: int) -> Batch:
        tokens_BT, targets_BT = self._windows(self._training, self._starts(step))
        context = curriculum_length(self.context_length, step, self.curriculum)
        if context < self.context_length:
            targets_BT = targets_BT.clone()  # targets share memory with tokens
            targets_BT[:, context:] = IGNORE_INDEX
        return Batch(tokens_BT, targets_BT)

    def _starts(self, step: int) -> npt.NDArray[np.int64]:
        """Where the windows of a training batch begin, [B]."""
        length = len(self._training)
        if self.stateful:
            first_B = np.arange(self.batch_size) * length // self.batch_size
            return (first_B + step * self.context_length % length) % length
        random = random_generator(self.seed, TRAINING_STREAM, step)
        return random.integers(length - self.context_length, size=self.batch_size)

    def validation_batches(self) -> BatchSets:
        return {"validation": self._spread(self._validation)}

    def test_batches(self) -> BatchSets:
        return {"test": self._spread(self._test)}

    def _spread(self, part: Rows) -> list[Batch]:
        """Batches of adjacent windows, or of evenly spread windows if there would be too many."""
        windows = (len(part) - 1) // self.context_length
        kept = min(windows, max(1, self.eval_tokens // self.context_length))
        starts = np.linspace(0, windows - 1, kept).astype(np.int64) * self.context_length
        return [self._windows(part, starts[i : i + self.batch_size]) for i in range(0, kept, self.batch_size)]

    def _windows(self, part: Rows, starts_B: npt.NDArray[np.int64]) -> Batch:
        """The windows that begin at these places; beyond the end of the part they go on at its beginning."""
        places_BT = starts_B[:, None] + np.arange(self.context_length + 1)
        places_BT %= len(part)
        window = torch.from_numpy(part[places_BT].astype(np.int64))
        return Batch(window[:, :-1], window[:, 1:])
