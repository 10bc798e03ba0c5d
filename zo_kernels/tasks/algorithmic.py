"""What the tasks have in common whose examples a rule makes: random lengths, and sets of longer ones.

Shape suffixes: B batch, L the longest length, Q question, A answer, T time.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import chain, count, islice
from math import log
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..ops.checks import IGNORE_INDEX
from .base import (
    REFERENCE_STREAM,
    TRAINING_STREAM,
    VALIDATION_STREAM,
    Batch,
    BatchSets,
    Task,
    grown_length,
    random_generator,
    require_at_least,
)

Tokens = npt.NDArray[np.int64]

_VALIDATION_BATCHES = 8
_REFERENCE_LETTERS = 1 << 17
_REFERENCE_VOCABULARY = 64
"""Largest vocabulary for whose pairs of tokens so many letters are enough: beyond it the estimate would be too low."""


class Algorithmic(Task):
    """Examples of uniformly random letters, each row of a batch with its own length L.

    Training and validation lengths are uniform on 1 .. max_length; the set `longer` has the lengths max_length + 1 ..
    longer_length, of which training has none. All batches of a set have one shape: that of the set's longest example.
    Rows are filled up at the end, where a recurrent model sees it only after the last scored token.

    batch_size: B, rows of a batch.
    max_length: longest L in training.
    alphabet_size: letters, or digits, there are: the tokens 0 .. alphabet_size - 1.
    seed: of the run, in [0, 2^64).
    longer_length: longest L of the set `longer`; None: 2 * max_length.
    curriculum: steps over which the longest training length grows from 1 to max_length; 0: none.

    Raises ValueError if batch_size or max_length is below 1, alphabet_size below 2, curriculum below 0 or longer_length
    not above max_length.
    """

    alphabet: ClassVar[str]
    """The first characters that stand for the alphabet's tokens."""

    predictable: ClassVar[bool]
    """Whether a token tells of the next answer: if so, the bigram entropy of a small vocabulary is a reference loss."""

    def __init__(
        self,
        *,
        batch_size: int,
        max_length: int,
        alphabet_size: int,
        seed: int,
        longer_length: int | None = None,
        curriculum: int = 0,
    ) -> None:
        require_at_least(1, batch_size=batch_size, max_length=max_length)
        require_at_least(2, alphabet_size=alphabet_size)
        require_at_least(0, curriculum=curriculum)
        if longer_length is not None and longer_length <= max_length:
            raise ValueError(f"longer_length must be above max_length {max_length}, not {longer_length}")
        self.batch_size = batch_size
        self.max_length = max_length
        self.alphabet_size = alphabet_size
        self.seed = seed
        self.longer_length = 2 * max_length if longer_length is None else longer_length
        self.curriculum = curriculum
        self.symbols = (*characters(self.alphabet, alphabet_size), *self.marks())
        self.vocab_size = len(self.symbols)
        self.reference_losses = {"chance": log(self.answer_size())}
        if self.predictable and self.vocab_size <= _REFERENCE_VOCABULARY:
            self.reference_losses["bigram entropy"] = self._bigram_entropy()

    def marks(self) -> str:
        """The characters of the tokens from alphabet_size on."""
        return ""

    def answer_size(self) -> int:
        """How many different tokens an answer can have."""
        return self.alphabet_size

    @abstractmethod
    def examples(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Batch:
        """Examples of the first L letters of each row, in a shape that depends on that of the letters alone."""

    def batch(self, step: int) -> Batch:
        longest = grown_length(self.max_length, step, self.curriculum)
        return self._draw(random_generator(self.seed, TRAINING_STREAM, step), 1, longest, self.max_length)

    def validation_batches(self) -> BatchSets:
        lengths = {"validation": (1, self.max_length), "longer": (self.max_length + 1, self.longer_length)}
        return {
            name: [
                self._draw(
                    random_generator(self.seed, VALIDATION_STREAM, number * _VALIDATION_BATCHES + i),
                    shortest,
                    longest,
                    longest,
                )
                for i in range(_VALIDATION_BATCHES)
            ]
            for number, (name, (shortest, longest)) in enumerate(lengths.items())
        }

    def _draw(
        self, random: np.random.Generator, shortest: int, longest: int, width: int, rows: int | None = None
    ) -> Batch:
        """Examples with lengths uniform on shortest .. longest, in the shape of those of length `width`."""
        rows = self.batch_size if rows is None else rows
        letters_BL = random.integers(self.alphabet_size, size=(rows, width))
        length_B1 = random.integers(shortest, longest + 1, size=(rows, 1))
        return self.examples(random, letters_BL, length_B1)

    def _bigram_entropy(self) -> float:
        """Entropy of a target given the token before it, wherever they stand; of a sample, the same for every seed."""
        rows = -(-_REFERENCE_LETTERS // self.max_length)
        sample = self._draw(random_generator(0, REFERENCE_STREAM, 0), 1, self.max_length, self.max_length, rows)
        scored = sample.targets != IGNORE_INDEX
        pairs = (sample.tokens * self.vocab_size + sample.targets)[scored].numpy()
        counts = np.bincount(pairs, minlength=self.vocab_size**2).reshape(self.vocab_size, -1)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return -float(np.sum(counts[counts > 0] * np.log(share[counts > 0])) / len(pairs))


class Exercise(NamedTuple):
    """Questions and their answers, row by row; what stands behind a row's length is not read.

    question: int64 [B, Q].
    question_length: int64 [B, 1], values in 1 .. Q.
    answer: int64 [B, A].
    answer_length: int64 [B, 1], values in 1 .. A.
    """

    question: Tokens
    question_length: Tokens
    answer: Tokens
    answer_length: Tokens


class QuestionAnswer(Algorithmic):
    """Examples `question separator answer`, scored on each of the answer's tokens and on nothing else.

    The model reads `q_1 .. q_Q | a_1 .. a_(A-1)` and is asked for a_1 at the separator, which also fills rows up. The
    tokens are the alphabet, then the marks, of which the separator is the first.
    """

    def marks(self) -> str:
        return "|"

    @property
    def separator(self) -> int:
        """The token between question and answer."""
        return self.alphabet_size

    @abstractmethod
    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        """The questions about the first L letters of each row, and their answers."""

    def examples(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Batch:
        question_BQ, read_B1, answer_BA, answered_B1 = self.exercise(random, letters_BL, length_B1)
        shape = len(letters_BL), question_BQ.shape[1] + answer_BA.shape[1]
        time_BT = np.broadcast_to(np.arange(shape[1]), shape)
        answering = (time_BT >= read_B1) & (time_BT < read_B1 + answered_B1)
        tokens_BT = np.where(time_BT < read_B1, take(question_BQ, time_BT), self.separator)
        tokens_BT = np.where(answering & (time_BT > read_B1), take(answer_BA, time_BT - read_B1 - 1), tokens_BT)
        targets_BT = np.where(answering, take(answer_BA, time_BT - read_B1), IGNORE_INDEX)
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT))


def take(values_BN: Tokens, index_BT: Tokens) -> Tokens:
    """values[b, index[b, t]], the first or the last one where the index is out of range."""
    return np.take_along_axis(values_BN, index_BT.clip(0, values_BN.shape[1] - 1), axis=1)


def characters(first: str, number: int) -> tuple[str, ...]:
    """So many different characters: the given ones first, then others."""
    return tuple(islice(chain(first, map(chr, count(0x4E00))), number))
