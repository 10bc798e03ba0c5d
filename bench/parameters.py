"""`python -m bench.parameters`: what it costs that parameters keep their own storage; 60 seconds.

A step with a free loss on many tensors against the same on one, the kernels on a list against torch's foreach add, one
small tensor against add_, and the memory that building an optimizer takes. All in turns, in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import zo_kernels as zo
from bench.report import RESULTS, machine, shown, table, write
from zo_kernels.backends.pieces import Pieces
from zo_kernels.ops.lists import apply_probe_list
from zo_kernels.params import ParameterSpace

WIDTH, LAYERS, PROBES = 512, 25, 96
MATRICES = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
VECTORS = [(3 * WIDTH,), (4 * WIDTH,), *([(WIDTH,)] * 6)]
TRANSFORMER: list[tuple[int, ...]] = [*MATRICES, *VECTORS] * LAYERS
"""Shapes of 300 tensors: 79 million parameters."""


def step_of(sizes: Sequence[int]) -> Callable[[], object]:
    """A step whose loss costs nothing."""
    parameters = [nn.Parameter(torch.zeros(n)) for n in sizes]
    optimizer = zo.optim.CDRGE(parameters, lr=1e-3, eps=2**-7, probes=PROBES, check_every=0)
    losses, calls = [1.0, 1.001], [0]

    def loss() -> float:
        calls[0] += 1
        return losses[calls[0] % 2]

    return lambda: optimizer.step(loss)


def in_turns(
    ways: Sequence[Callable[[], object]], rounds: int, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Milliseconds of a call of each way, in each round."""
    taken: list[list[float]] = [[] for _ in ways]
    for round_ in range(rounds + 1):
        for number in sorted(range(len(ways)), reverse=round_ % 2 == 1):
            started = clock()
            for _ in range(repeats):
                ways[number]()
            taken[number].append((clock() - started) * 1e3 / repeats)
    return [ms[1:] for ms in taken]  # the first warms up


def compare(name: str, ours: Callable[[], object], rival: Callable[[], object], **options: Any) -> dict[str, Any]:
    """The median of the ratios of the rounds."""
    rounds, repeats, at_most = options["rounds"], options["repeats"], options["at_most"]
    mine, theirs = in_turns([ours, rival], rounds, repeats)
    ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
    return {"name": name, "figure": ratio, "unit": "x", "at_most": at_most} | {
        "ours_ms": median(mine),
        "rival_ms": median(theirs),
    }


def built_bytes() -> int:
    """Bytes that building an optimizer of 40 MB of parameters allocates."""
    parameters = [nn.Parameter(torch.zeros(50_000)) for _ in range(200)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        zo.optim.CDRGE(parameters, lr=1e-3)
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events())


def measure(threads: int, rounds: int) -> list[dict[str, Any]]:
    """The figures on this many threads."""
    torch.set_num_threads(threads)
    on = f", {threads} thread{'s' * (threads > 1)}"
    tensors = [torch.zeros(shape) for shape in TRANSFORMER]
    space = ParameterSpace.of([nn.Parameter(x) for x in tensors])
    pieces = Pieces([x.view(-1) for x in tensors], [slot.offset for slot in space.slots])
    small = torch.zeros(1000)
    return [
        compare(
            f"step of {PROBES} probes, 10M in 200 tensors over one{on}",
            step_of([50_000] * 200),
            step_of([10_000_000]),
            rounds=rounds,
            repeats=1,
            at_most=1.03,
        ),
        compare(
            f"apply to a transformer of 300 tensors over torch._foreach_add_{on}",
            lambda: apply_probe_list(pieces, pieces, 0.1, 7, "rademacher"),
            lambda: torch._foreach_add_(tensors, 0.1),
            rounds=3 * rounds,
            repeats=1,
            at_most=1.0,
        ),
        compare(
            f"apply_probe_ of 1k over add_{on}",
            lambda: zo.ops.apply_probe_(small, 0.1, 7),
            lambda: small.add_(0.1),
            rounds=3 * rounds,
            repeats=3000,
            at_most=3.0,
        ),
    ]


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    figures = [{"name": "building an optimizer of 40 MB in 200 tensors, bytes allocated", "figure": built_bytes()}]
    for threads in (1, 2):
        figures += measure(threads, arguments.rounds)
    print(table(figures))
    path = RESULTS / "parameters.json"
    write(path, {"command": "python -m bench.parameters", "machine": machine(), "figures": figures})
    print(f"written to {shown(path)}")


if __name__ == "__main__":
    main()
