"""Divides a text into parts for training, validation and the test, and says what context length fits into them."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

_TOLERANCE = 1e-9
"""How far the sum of three shares may be from 1, since decimals such as 0.3333333333 are rounded."""


class Parts(NamedTuple):
    """The shares of a text for training, validation and the test, which sum to exactly 1."""

    training: Fraction
    validation: Fraction
    test: Fraction

    def sizes(self, count: int) -> tuple[int, int, int]:
        """Number of tokens of each part of `count`. The last two are rounded down; the first has the rest."""
        validation, test = int(count * self.validation), int(count * self.test)
        return count - validation - test, validation, test


DEFAULT_PARTS = Parts(Fraction(18, 20), Fraction(1, 20), Fraction(1, 20))


def read_parts(text: str) -> Parts:
    """Reads shares such as "0.9,0.05,0.05". Raises ValueError unless they are three positive numbers that sum to 1."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(share > 0 for share in shares) or not abs(sum(shares) - 1) <= _TOLERANCE:
        raise ValueError(
            f"parts must be three positive numbers that sum to 1, such as 0.9,0.05,0.05, not {text[:100]!r}"
        )
    exact = [Fraction(repr(share)) for share in shares]  # of the decimals that were given
    return Parts(*(share / sum(exact) for share in exact))


class TextLength(NamedTuple):
    """The length of a text of which windows are cut.

    path: its file. size: its number of tokens. shares: its parts, each of which needs a window.
    """

    path: Path
    size: int
    shares: tuple[Fraction, ...] = (Fraction(1),)

    @property
    def longest_context(self) -> int:
        """The largest context length of which each part has a window, which has one more token for the last target."""
        return int(self.size * min(self.shares)) - 1

    def least_count(self, context_length: int) -> int:
        """The number of tokens from which on each part has a window of this context length."""
        return math.ceil((context_length + 1) / min(self.shares))


def require_context(
    context_length: int, *texts: TextLength, unit: str = "characters", longer: str = "a longer file"
) -> None:
    """Raises ValueError, with the numbers that would do, if a text is too short for the context length."""
    shortest = min(texts, key=lambda text: text.longest_context)
    longest = shortest.longest_context
    if context_length <= longest:
        return
    remedy = f"give at most --context-length {longest}, or {longer}" if longest > 0 else f"give {longer}"
    raise ValueError(
        f"{shortest.path} has {shortest.size} {unit}, but --context-length {context_length} needs at least "
        f"{shortest.least_count(context_length)}: {remedy}"
    )
