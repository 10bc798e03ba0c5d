"""`python -m bench.sharing`: what to share among two processes, and a rank of half the speed; about 2 minutes.

Few probes and many micro-batches, shared by probes, by micro-batches and by both; and a rank that takes twice as long
for everything, with even shares and with balanced ones. Each against one process alone, in turns. Writes
bench/results/sharing.json.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor

import zo_kernels as zo
from bench.ranks import Ranks
from bench.report import RESULTS, machine
from zo_kernels.estimators import BatchPopulation

ROUNDS, STEPS, SETTLE = 7, 2, 8
SIZES, SHAPE, MICRO_BATCHES = (100, 100, 240, 12), (2048, 10), 8
WAYS: dict[str, tuple[int, dict[str, Any], bool]] = {
    "3 probes, by probes": (3, {"split": "probes"}, False),
    "3 probes, by micro-batches": (3, {"split": "batch"}, False),
    "3 probes, by both": (3, {"split": "both"}, False),
    "48 probes, a slow rank, even": (48, {}, True),
    "48 probes, a slow rank, balanced": (48, {"balance": True}, True),
}
"""Probes of a step, how they are shared, and whether rank 1 takes twice as long."""


class Twice:
    """A population as a processor of half the speed has it."""

    def __init__(self, population: BatchPopulation) -> None:
        self._population = population
        self.parts, self.scored = population.parts, population.scored

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        self._population.population_loss(seeds, eps)
        return self._population.population_loss(seeds, eps)

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        self._population.part_nats(part, seeds, eps)
        return self._population.part_nats(part, seeds, eps)


def main() -> None:
    seconds: dict[tuple[str, int], list[float]] = {(way, size): [] for way in WAYS for size in (1, 2)}
    with Ranks(1) as alone, Ranks(2) as two:
        for group in (alone, two):
            for way in WAYS:
                group.call(_build, way)
        for _ in range(ROUNDS):
            for way in WAYS:
                for group in (alone, two):
                    seconds[way, group.world_size].append(max(group.call(_steps, way, STEPS)))
    figures = {}
    for way in WAYS:
        one, shared = seconds[way, 1], seconds[way, 2]
        figures[way] = {
            "alone_ms": 1e3 * statistics.median(one),
            "shared_ms": 1e3 * statistics.median(shared),
            "times_as_fast": statistics.median(a / b for a, b in zip(one, shared, strict=True)),
        }
        print(f"{way:34} {figures[way]['shared_ms']:7.1f} ms, {figures[way]['times_as_fast']:.2f} times as fast as one")
    content = {"machine": machine(), "command": "python -m bench.sharing", "figures": figures}
    (RESULTS / "sharing.json").write_text(json.dumps(content, indent=1) + "\n")


def _build(state: dict[str, Any], way: str) -> None:
    probes, sharing, uneven = WAYS[way]
    model = zo.models.LSTM(*SIZES, seed=0)
    batch = torch.randint(SIZES[0], (2, *SHAPE), generator=torch.Generator().manual_seed(0))
    replicas = zo.distributed.Replicas(**sharing) if state["world_size"] > 1 else None
    opt = zo.optim.CDRGE(model.parameters(), lr=2**-7, eps=2**-7, probes=probes, seed=0, replicas=replicas)
    state[way] = model, opt, batch, uneven and state["rank"] == 1
    _steps(state, way, SETTLE)


def _steps(state: dict[str, Any], way: str, steps: int) -> float:
    """Seconds of a step."""
    model, opt, (tokens, targets), slow = state[way]
    begin = time.perf_counter()
    for _ in range(steps):
        population = model.population(tokens, targets, micro_batch_size=len(tokens) // MICRO_BATCHES)
        opt.step(Twice(population) if slow else population)
    return (time.perf_counter() - begin) / steps


if __name__ == "__main__":
    main()
