"""Times by CUDA events, taken in turns, so that a slow moment of the machine strikes all that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Calls = Mapping[str, Callable[[], object]]

_CACHE_BYTES = 256 << 20
"""More than any GPU's L2."""


def in_turns(
    device: str, calls: Calls, *, rounds: int, warm_up: int = 1, flush: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call in each round. flush: empty the GPU's cache before each, where the inputs would fit it."""
    for _ in range(warm_up):
        for call in calls.values():
            call()
    return _by_events(calls, rounds, flush) if device == "cuda" else _by_clock(calls, rounds)


def _by_clock(calls: Calls, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def _by_events(calls: Calls, rounds: int, flush: bool) -> dict[str, list[float]]:
    cache = torch.empty(_CACHE_BYTES if flush else 0, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    torch.cuda.synchronize()
    for _ in range(rounds):
        for name, call in calls.items():
            cache.zero_()  # and the host gets ahead of the GPU, so that a launch is not part of the time
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}


def summary(times: Sequence[float]) -> dict[str, Any]:
    """{"ms": the median, "rounds", "spread"}."""
    spread = [_digits(1e3 * min(times)), _digits(1e3 * max(times))]
    return {"ms": _digits(1e3 * statistics.median(times)), "rounds": len(times), "spread": spread}


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return _digits(statistics.median(a / b for a, b in zip(over, under, strict=True)))


def _digits(number: float) -> float:
    return float(f"{number:.5g}")
