"""How the rows of an exchange are divided among ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def split_evenly(count: int, ranks: int) -> list[slice]:
    """Divides `count` rows into contiguous shares whose sizes differ by one at most."""
    return _make_slices([count // ranks + (rank < count % ranks) for rank in range(ranks)])


def split_by_speed(count: int, speeds: Sequence[float]) -> list[slice]:
    """Divides `count` rows into contiguous shares proportional to positive speeds.

    No share is empty unless there are fewer rows than ranks, because the speed of a rank is measured from its share.
    The same speeds give the same shares on every rank.
    """
    ranks = len(speeds)
    if count < ranks:
        return split_evenly(count, ranks)
    total, rest = sum(speeds), count - ranks
    bounds = [round(rest * part / total) for part in accumulate(speeds)]
    bounds[-1] = rest
    return _make_slices([1 + after - before for before, after in zip([0, *bounds], bounds, strict=False)])


def _make_slices(counts: Sequence[int]) -> list[slice]:
    stops = list(accumulate(counts))
    return [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
