"""Base classes of the algorithmic tasks, which make examples of random length by a rule.

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
    curriculum_length,
    random_generator,
    require_at_least,
)

Tokens = npt.NDArray[np.int64]

_VALIDATION_BATCHES = 8
_REFERENCE_LETTERS = 1 << 17
_REFERENCE_VOCABULARY = 64
_FIRST_CHARACTER, _LAST_CHARACTER = 0x4E00, 0xD800
"""Of the characters of a large alphabet; behind them are surrogates, which are no characters."""
"""Largest vocabulary for which the bigram entropy is estimated. With more pairs the estimate would be too low."""


class Algorithmic(Task):
    """Examples of uniformly random letters, where each row of a batch has its own length L.

    Lengths are uniform on 1 .. max_length in training and validation. In the set `longer` they are uniform on
    max_length + 1 .. longer_length, which do not occur in training. All batches of a set have the shape of its longest
    example. Rows are padded at the end, so a recurrent model reads the padding only after the last scored token.

    batch_size: B, number of rows of a batch.
    max_length: largest L in training.
    alphabet_size: number of letters or digits, the tokens 0 .. alphabet_size - 1.
    seed: the run seed, in [0, 2^64).
    longer_length: largest L of the set `longer`; None means 2 * max_length.
    curriculum: number of steps over which the largest training length grows from 1 to max_length; 0 for no curriculum.

    Raises ValueError if batch_size or max_length is below 1, alphabet_size below 2, curriculum below 0 or longer_length
    not above max_length.
    """

    alphabet: ClassVar[str]
    """The characters that stand for the first tokens of the alphabet."""

    predictable: ClassVar[bool]
    """Whether a token says something about the next answer. If so, the bigram entropy is a reference loss."""

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
        """The characters of the special tokens, from alphabet_size on."""
        return ""

    def answer_size(self) -> int:
        """Number of different tokens that can occur in an answer."""
        return self.alphabet_size

    @abstractmethod
    def examples(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Batch:
        """Makes examples of the first L letters of each row. Their shape depends only on the shape of the letters."""

    def batch(self, step: int) -> Batch:
        longest = curriculum_length(self.max_length, step, self.curriculum)
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
        """Draws examples with lengths uniform on shortest .. longest, in the shape of examples of length `width`."""
        rows = self.batch_size if rows is None else rows
        letters_BL = random.integers(self.alphabet_size, size=(rows, width))
        length_B1 = random.integers(shortest, longest + 1, size=(rows, 1))
        return self.examples(random, letters_BL, length_B1)

    def _bigram_entropy(self) -> float:
        """Entropy in nats of a target given its token, estimated on a sample that does not depend on the run seed."""
        rows = -(-_REFERENCE_LETTERS // self.max_length)
        sample = self._draw(random_generator(0, REFERENCE_STREAM, 0), 1, self.max_length, self.max_length, rows)
        scored = sample.targets != IGNORE_INDEX
        pairs = (sample.tokens * self.vocab_size + sample.targets)[scored].numpy()
        counts = np.bincount(pairs, minlength=self.vocab_size**2).reshape(self.vocab_size, -1)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return -float(np.sum(counts[counts > 0] * np.log(share[counts > 0])) / len(pairs))


class Exercise(NamedTuple):
    """Questions and their answers, one per row. Values beyond a row's length are ignored.

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
    """Examples `question separator answer`, of which only the tokens of the answer are scored.

    The model reads `q_1 .. q_Q | a_1 .. a_(A-1)` and predicts a_1 at the separator. The separator also pads the rows.
    The tokens are the alphabet, then the characters of `marks`, beginning with the separator.
    """

    def marks(self) -> str:
        return "|"

    @property
    def separator(self) -> int:
        """The token between question and answer."""
        return self.alphabet_size

    @abstractmethod
    def exercise(self, random: np.random.Generator, letters_BL: Tokens, length_B1: Tokens) -> Exercise:
        """Makes the question and answer for the first L letters of each row."""

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
    """values[b, index[b, t]], with each index clamped to the valid range."""
    return np.take_along_axis(values_BN, index_BT.clip(0, values_BN.shape[1] - 1), axis=1)


def characters(first: str, number: int) -> tuple[str, ...]:
    """`number` different characters: those of `first`, then others. Raises ValueError if there are not so many."""
    if number > (most := len(first) + _LAST_CHARACTER - _FIRST_CHARACTER):
        raise ValueError(f"alphabet_size must be at most {most}, not {number}")
    return tuple(islice(chain(first, map(chr, count(_FIRST_CHARACTER))), number))
