"""Calls timed in turns, so that a slow moment of the machine strikes all that is compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

Figure = dict[str, Any]  # what bench.report.table shows

_CACHE_BYTES = 256 << 20  # more than any GPU's L2


def in_turns(
    device: str, calls: Mapping[str, Callable[[], object]], rounds: int, flush: bool = False, warm: bool = True
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after one to warm up if `warm`; on a GPU by its own clock.

    flush: empty the GPU's cache before each call, where the inputs would fit it. The host then runs ahead of the GPU,
    so that a launch is no part of the time.
    """
    cache = torch.empty(_CACHE_BYTES if flush and device == "cuda" else 0, dtype=torch.int8, device=device)
    found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for _ in range(rounds + warm):
        for name, call in calls.items():
            cache.zero_()
            start = _now(device)
            call()
            found[name].append((start, _now(device)))
    if device == "cuda":
        torch.cuda.synchronize()
        return {name: [a.elapsed_time(b) for a, b in pairs[warm:]] for name, pairs in found.items()}
    return {name: [1e3 * (b - a) for a, b in pairs[warm:]] for name, pairs in found.items()}


def _now(device: str) -> Any:
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def compare(name: str, ours: Sequence[float], rival: Sequence[float], scale: float = 1.0, **more: Any) -> Figure:
    """How many times as long the rival takes, of whose work `scale` parts would be all."""
    ratio = median(scale * b / a for a, b in zip(ours, rival, strict=True))
    return {"name": name, "figure": ratio, "ours_ms": median(ours), "rival_ms": scale * median(rival), **more}
