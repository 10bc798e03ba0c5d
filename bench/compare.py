"""One figure of a benchmark: ours against a rival, in turns, so that a slow moment of the machine strikes both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture


def compare(
    benchmark: BenchmarkFixture,
    ours: Callable[[], object],
    rival: Callable[[], object],
    *,
    rounds: int,
    at_most: float | None = None,
    at_least: float | None = None,
    rival_scale: float = 1.0,
) -> None:
    """Times `ours` through pytest-benchmark and `rival` before each of its rounds.

    The figure, in benchmark.extra_info, is the median of the rounds' ratios: ours / rival for a bar `at_most`,
    rival / ours ("times faster") for a bar `at_least`. rival_scale: how much of its work the rival stands for, where
    all of it would take too long (work that is linear in the number of seeds, say).
    """
    rival_times: list[float] = []

    def time_rival() -> None:
        start = time.perf_counter()
        rival()
        rival_times.append((time.perf_counter() - start) * rival_scale)

    benchmark.pedantic(ours, setup=time_rival, rounds=rounds, warmup_rounds=1)
    assert benchmark.stats is not None, "pedantic has run"
    our_times: list[float] = benchmark.stats.stats.data
    pairs = list(zip(our_times, rival_times[-len(our_times) :], strict=True))
    ratios = [mine / other if at_most is not None else other / mine for mine, other in pairs]
    record(
        benchmark,
        statistics.median(ratios),
        at_most=at_most,
        at_least=at_least,
        ours_ms=1e3 * statistics.median(our_times),
        rival_ms=1e3 * statistics.median(mine for _, mine in pairs),
        spread=[min(ratios), max(ratios)],
    )


def record(
    benchmark: BenchmarkFixture,
    figure: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    **more: Any,
) -> None:
    """Notes a figure and its bar for the table of `python -m bench.cpu`."""
    benchmark.extra_info.update(figure=figure, at_most=at_most, at_least=at_least, **more)
