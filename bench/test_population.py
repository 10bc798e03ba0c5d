"""The population forward: a whole step against the same step probe by probe through torch, and its rate and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import zo_kernels as zo
from bench.compare import compare, record
from zo_kernels.backends import backend_for
from zo_kernels.philox import probe_seeds

EPS = 2.0**-7


class Setting(NamedTuple):
    """A model and a batch of the paper's sizes; vocabulary and embedding are 100."""

    hidden_size: int
    num_heads: int
    batch_size: int
    time: int

    def model(self) -> zo.models.LSTM:
        return zo.models.LSTM(100, 100, self.hidden_size, self.num_heads, seed=0)

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(100, (self.batch_size, self.time + 1), generator=generator)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def flops(self, members: int) -> float:
        """What the arithmetic of a population needs: recurrence, output projection and token table."""
        dim, gates = self.hidden_size // self.num_heads, 4 * self.hidden_size
        distinct = len(self.batch()[0].unique())
        per_token = gates * dim + 100 * self.hidden_size
        return 2.0 * members * (self.batch_size * self.time * per_token + distinct * gates * 100)


TINY = Setting(240, 12, 1024, 10)
SMALL = Setting(1600, 32, 1024, 10)
LONG = Setting(128, 4, 1, 100)


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest) -> str:
    if request.param not in backend_for("cpu").precisions():
        pytest.skip(f"this processor has no {request.param} products")
    return str(request.param)


@pytest.mark.parametrize(
    ("setting", "probes", "few", "times_faster"),
    [pytest.param(TINY, 96, 4, 8.0, id="tiny"), pytest.param(LONG, 512, 64, 30.0, id="B=1")],
)
def test_step_over_probe_by_probe(
    benchmark: BenchmarkFixture,
    threads: int,
    precision: str,
    setting: Setting,
    probes: int,
    few: int,
    times_faster: float,
) -> None:
    """The rival takes its step with few probes, and in float32: it is linear in them."""
    model, rival_model = setting.model(), setting.model()
    tokens, targets = setting.batch()
    opt = zo.optim.CDRGE(model.parameters(), lr=EPS, probes=probes)
    rival = zo.optim.CDRGE(rival_model.parameters(), lr=EPS, probes=few)
    compare(
        benchmark,
        lambda: opt.step(model.population(tokens, targets, precision=precision)),
        lambda: rival.step(lambda: rival_model.loss(tokens, targets)),
        rounds=5,
        at_least=times_faster,
        rival_scale=probes / few,
    )


@pytest.mark.parametrize(
    ("setting", "probes", "share"),
    [pytest.param(TINY, 16, 0.45, id="tiny"), pytest.param(SMALL, 4, 0.60, id="small")],
)
def test_rate_over_mm(benchmark: BenchmarkFixture, threads: int, setting: Setting, probes: int, share: float) -> None:
    """Needed arithmetic over time, as a share of what torch.mm reaches on the same cores."""
    model = setting.model()
    tokens, targets = setting.batch()
    seeds = torch.from_numpy(probe_seeds(0, 0, probes))
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    flops = setting.flops(2 * probes)
    compare(
        benchmark,
        lambda: model.population_loss(tokens, targets, seeds, EPS),
        lambda: torch.mm(a, b, out=out),
        rounds=7,
        at_least=share,
        rival_scale=flops / (2 * 2048**3),
    )
    benchmark.extra_info["ours_gflops"] = flops / benchmark.extra_info["ours_ms"] * 1e-6


def test_memory_over_context_length(benchmark: BenchmarkFixture) -> None:
    """Peak resident memory of a process that takes a step at T = 100,000, over one at T = 10; B = 1, 8 probes."""
    peaks = {}
    for length in (10, 100_000):
        setting = f"from bench.test_population import *; peak_of_step({length})"
        done = subprocess.run([sys.executable, "-c", setting], capture_output=True, text=True, check=True)
        peaks[length] = int(done.stdout)
    benchmark.pedantic(lambda: None)
    record(benchmark, peaks[100_000] / peaks[10], at_most=1.05, peak_bytes=peaks)


def peak_of_step(length: int) -> None:
    """Takes a step at a context length and prints the process' peak memory in bytes."""
    from bench.test_step import memory

    step_at(length)()
    print(memory("VmHWM"))


def step_at(length: int) -> Callable[[], float]:
    setting = LONG._replace(time=length)
    model = setting.model()
    tokens, targets = setting.batch()
    opt = zo.optim.CDRGE(model.parameters(), lr=EPS, probes=8)
    return lambda: opt.step(model.population(tokens, targets))


def test_time_per_token_over_context_length(benchmark: BenchmarkFixture, threads: int) -> None:
    """Of a step at T = 100,000 over one at T = 100; B = 1, 8 probes. Below 1: the token table is made once for more."""
    short, long = step_at(100), step_at(100_000)

    def rival() -> None:
        for _ in range(100):
            short()

    compare(benchmark, long, rival, rounds=3, at_most=1.10, rival_scale=10.0)


def test_seconds_of_a_step_of_a_million_tokens(benchmark: BenchmarkFixture, threads: int) -> None:
    """One sequence, 8 probes. The figure is seconds."""
    benchmark.pedantic(step_at(1_000_000), rounds=3)
    assert benchmark.stats is not None, "pedantic has run"
    record(benchmark, benchmark.stats.stats.median)
