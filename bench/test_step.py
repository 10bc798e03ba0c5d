"""A whole optimizer step with a loss that costs nothing: what the optimizer itself takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import zo_kernels as zo
from bench import usual
from bench.compare import compare, record


def free_loss() -> Callable[[], float]:
    """A loss function that only counts, so that losses differ."""
    counter = itertools.count()
    return lambda: 1e-3 * (next(counter) % 7)


def test_step_over_usual_code(benchmark: BenchmarkFixture) -> None:
    n, numel, few = 96, 10_000_000, 2
    opt = zo.optim.CDRGE([nn.Parameter(torch.randn(numel))], lr=2**-6, probes=n)
    x, scratch, generator = torch.randn(numel), torch.empty(numel), torch.Generator()
    loss = free_loss()
    compare(
        benchmark,
        lambda: opt.step(loss),
        lambda: usual.step(x, scratch, loss, 2**-6, list(range(few)), generator),
        rounds=5,
        at_least=80.0,
        rival_scale=n / few,
    )


def test_memory_of_a_step(benchmark: BenchmarkFixture) -> None:
    """Growth of the process' peak memory during a step in place, as a share of the parameters'."""
    parameter = nn.Parameter(torch.randn(100_000_000))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=2)
    loss = free_loss()
    opt.step(loss)
    benchmark.pedantic(lambda: opt.step(loss), rounds=1)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    opt.step(loss)
    growth = memory("VmHWM") - before
    record(benchmark, growth / (parameter.numel() * 4), at_most=0.01, peak_growth_bytes=growth)


def memory(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
