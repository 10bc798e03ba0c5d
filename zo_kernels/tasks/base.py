"""A task has a vocabulary, and batches that depend only on the run seed and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.checks import IGNORE_INDEX

TRAINING_STREAM = 0
VALIDATION_STREAM = 1
REFERENCE_STREAM = 2
SPLIT_STREAM = 3


class Batch(NamedTuple):
    """Token sequences, and the target to predict after each token.

    tokens: int64 [B, T], values in [0, V).
    targets: int64 [B, T], values in [0, V), or -100 at positions that are not scored.
    """

    tokens: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Copies the batch to a device."""
        return Batch(self.tokens.to(device), self.targets.to(device))


BatchSets = Mapping[str, Sequence[Batch]]
"""Sets of batches to evaluate, by the name of the set."""


class Task(ABC):
    """A source of training and validation batches.

    A task's constructor takes its options as keywords, named like the flags of `python -m zo_kernels.train`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Values that flags of the trainer have by default for a task of your own, by field of `TrainConfig`."""

    vocab_size: int
    """V, the number of tokens 0 .. V-1."""

    symbols: Sequence[str]
    """A distinct string for each token, [V]. Each is one character, unless the tokens come from a tokenizer."""

    reference_losses: Mapping[str, float]
    """Losses in nats per token of predictors without memory, by name. The first is that of uniform guessing."""

    has_answers: ClassVar[bool] = False
    """Whether each row of a batch has one answer, so that validations also count those that are right as a whole."""

    has_accuracy: ClassVar[bool] = True
    """Whether an output can be right or wrong."""

    reads_numbers: ClassVar[bool] = False
    """Whether batches are of numbers, for a `SeriesModel`: inputs [B, T, K] and targets [B, T], with K = V - 1."""

    loss_unit: ClassVar[str] = "nats per token"
    """What losses are measured in."""

    tokenizer_json: str | None = None
    """Text of the tokenizer.json that turns text into the tokens; None if there is none."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of a step. It depends only on the run seed and the step."""

    @abstractmethod
    def validation_batches(self) -> BatchSets:
        """The validation sets. They depend only on the run seed.

        The first is named `validation`. It is distributed like the training batches (after the curriculum) and held
        out from training, unless the task is to memorise one batch.
        """

    def describe(self, kind: str) -> str:
        """What is predicted, in a few words. kind: of tokens, in parentheses; may be empty."""
        return f"{self.vocab_size} different tokens{kind}; losses in {self.loss_unit}"

    def in_words(self, loss: float, accuracy: float) -> str:
        """What scores mean, in a few words."""
        return f"{accuracy:.0%} right"

    def test_batches(self) -> BatchSets:
        """The sets to evaluate once, after training. Empty unless the task has a finite data set."""
        return {}


@dataclass(frozen=True)
class Score:
    """Sums over scored positions. Add the scores of several batches with `+`.

    nats: sum of the cross-entropy in nats.
    correct: number of positions where the most likely token is the target.
    count: number of scored positions.
    exact: number of answers that are right as a whole: rows in which every scored position is correct.
    answers: number of rows that `exact` is counted among; 0 if it was not counted.
    """

    nats: float
    correct: int
    count: int
    exact: int = 0
    answers: int = 0

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.nats / self.count

    @property
    def accuracy(self) -> float:
        """Fraction of positions where the most likely token is the target, from 0 to 1."""
        return self.correct / self.count

    @property
    def exact_accuracy(self) -> float | None:
        """Fraction of answers that are right as a whole, from 0 to 1; None if they were not counted."""
        return self.exact / self.answers if self.answers else None

    def __add__(self, other: Score) -> Score:
        return Score(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def score(logits_BTV: Tensor, targets_BT: Tensor) -> Score:
    """Scores logits [B, T, V] of any floating dtype against targets int64 [B, T], where -100 is not scored."""
    scored = targets_BT != IGNORE_INDEX
    logits_XV, targets_X = logits_BTV[scored].double(), targets_BT[scored]
    nats = F.cross_entropy(logits_XV, targets_X, reduction="sum")
    correct = (logits_XV.argmax(dim=-1) == targets_X).sum()
    return Score(float(nats), int(correct), targets_X.numel())


def random_generator(seed: int, stream: int, step: int) -> np.random.Generator:
    """A random generator that is a pure function of (seed, stream, step).

    It is NumPy's Philox4x64 with the seed and the stream as its key, and the step in the upper half of its counter. So
    a step has 2^128 blocks, and no two steps or streams share numbers.
    """
    # Arrays, because NumPy turns a list with an integer of 2^63 or more into floats.
    key, counter = np.array([seed, stream], dtype=np.uint64), np.array([0, 0, step, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def curriculum_length(full: int, step: int, curriculum: int) -> int:
    """The largest length at a step, which grows linearly from 1 at step 0 to `full` at step `curriculum`."""
    return full if step >= curriculum else 1 + (full - 1) * step // curriculum


def require_at_least(least: int, **options: int) -> None:
    """Raises ValueError, naming the option, if an option is below `least`."""
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
