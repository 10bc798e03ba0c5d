"""How the rows of an exchange are dealt to ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def even_shares(count: int, ranks: int) -> list[slice]:
    """Contiguous shares of `count` rows, as large as each other or smaller by one."""
    return _slices([count // ranks + (rank < count % ranks) for rank in range(ranks)])


def shares_by_speed(count: int, speeds: Sequence[float]) -> list[slice]:
    """Contiguous shares of `count` rows, proportional to positive speeds, but none empty unless there are too few rows.

    A share of its own every time is what a rank's speed is known from. The same numbers give the same shares on every
    rank.
    """
    ranks = len(speeds)
    if count < ranks:
        return even_shares(count, ranks)
    total, rest = sum(speeds), count - ranks
    bounds = [round(rest * part / total) for part in accumulate(speeds)]
    bounds[-1] = rest
    return _slices([1 + after - before for before, after in zip([0, *bounds], bounds, strict=False)])


def _slices(counts: Sequence[int]) -> list[slice]:
    stops = list(accumulate(counts))
    return [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
