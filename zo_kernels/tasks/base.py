"""What a task is: a vocabulary, and batches that depend on nothing but the run seed and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.checks import IGNORE_INDEX

TRAINING_STREAM = 0
VALIDATION_STREAM = 1
REFERENCE_STREAM = 2


class Batch(NamedTuple):
    """Token sequences, and what to predict after each token.

    tokens: int64 [B, T], values in [0, V).
    targets: int64 [B, T], values in [0, V), or -100 where nothing is scored.
    """

    tokens: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return Batch(self.tokens.to(device), self.targets.to(device))


BatchSets = Mapping[str, Sequence[Batch]]
"""Sets of batches to evaluate, by the name of the set."""


class Task(ABC):
    """A source of training and validation batches.

    The constructor of a task takes its options as keywords, named like the flags of `python -m zo_kernels.train`.
    """

    vocab_size: int
    """V: tokens are 0 .. V-1."""

    symbols: Sequence[str]
    """What stands for each token, all different: [V]. A character each, unless the tokens are a tokenizer's."""

    reference_losses: Mapping[str, float]
    """Losses in nats per token that predictors without a memory reach, by their name; the first is blind chance."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of a step: the same for the same run seed and step, whatever was asked for before."""

    @abstractmethod
    def validation_batches(self) -> BatchSets:
        """The validation sets, the same for the same run seed.

        The first is called `validation` and is distributed like the training batches (of a curriculum, the last ones),
        but held out, unless the task is to learn one batch by heart.
        """

    def test_batches(self) -> BatchSets:
        """Sets to be looked at once, after training; none unless the task's data are finite."""
        return {}


@dataclass(frozen=True)
class Score:
    """Sums over scored positions. The score of several batches is the sum (`+`) of theirs.

    nats: cross-entropy, in nats.
    correct: positions whose most likely token is the target.
    count: scored positions.
    """

    nats: float
    correct: int
    count: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.nats / self.count

    @property
    def accuracy(self) -> float:
        """Share of positions whose most likely token is the target, 0 to 1."""
        return self.correct / self.count

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.correct + other.correct, self.count + other.count)


def score(logits_BTV: Tensor, targets_BT: Tensor) -> Score:
    """Compares logits [B, T, V] of any floating dtype with targets int64 [B, T], where -100 does not count."""
    scored = targets_BT != IGNORE_INDEX
    logits_XV, targets_X = logits_BTV[scored].double(), targets_BT[scored]
    nats = F.cross_entropy(logits_XV, targets_X, reduction="sum")
    correct = (logits_XV.argmax(dim=-1) == targets_X).sum()
    return Score(float(nats), int(correct), targets_X.numel())


def random_generator(seed: int, stream: int, step: int) -> np.random.Generator:
    """Random numbers that are a pure function of (seed, stream, step).

    NumPy's Philox4x64 with the seed and the stream as its key and the step in the upper half of its counter: 2^128
    blocks a step, so that no two steps, and no two streams, ever share numbers.
    """
    # Arrays, because NumPy turns a list with an integer of 2^63 or more into floats.
    key, counter = np.array([seed, stream], dtype=np.uint64), np.array([0, 0, step, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def grown_length(full: int, step: int, curriculum: int) -> int:
    """The longest length at a step: grows in a straight line from 1 at step 0 to `full` at step `curriculum`."""
    return full if step >= curriculum else 1 + (full - 1) * step // curriculum


def require_at_least(least: int, **options: int) -> None:
    """Raises ValueError, naming the option, unless every option is at least `least`."""
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
