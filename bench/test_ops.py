"""The two kernels on the CPU, against the bars they were built to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import zo_kernels as zo
from bench import usual
from bench.compare import compare
from zo_kernels import _C


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """coeffs [n], seeds [n]"""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=generator, dtype=torch.float64) * 1e-5, torch.randint(
        2**62, (n,), generator=generator
    )


@pytest.mark.parametrize("numel", [10_000_000, 100_000_000], ids=["10M", "100M"])
def test_apply_probe_over_add(benchmark: BenchmarkFixture, threads: int, numel: int) -> None:
    x = torch.randn(numel)
    compare(
        benchmark,
        lambda: zo.ops.apply_probe_(x, 0.5, 7),
        lambda: x.add_(0.5),
        rounds=41 if numel < 50_000_000 else 15,
        at_most=1.10,
    )


def test_apply_probe_of_1k_over_add(benchmark: BenchmarkFixture) -> None:
    x = torch.randn(1000)

    def many(call: Callable[[], object]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(500):
                call()

        return calls

    compare(benchmark, many(lambda: zo.ops.apply_probe_(x, 0.5, 7)), many(lambda: x.add_(0.5)), rounds=21, at_most=3.0)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "sparse-64"])
def test_apply_probe_of_a_distribution_over_usual_code(benchmark: BenchmarkFixture, distribution: str) -> None:
    x = torch.randn(10_000_000)
    scratch, generator = torch.empty_like(x), torch.Generator()
    draw: dict[str, Callable[[], Tensor]] = {
        "normal": lambda: scratch.normal_(generator=generator),
        "uniform": lambda: scratch.uniform_(-(3**0.5), 3**0.5, generator=generator),
        "sparse-64": lambda: scratch.bernoulli_(1 / 64, generator=generator),  # without signs, which would take longer
    }

    def usual_code() -> None:
        generator.manual_seed(7)
        x.add_(draw[distribution](), alpha=0.5)

    compare(
        benchmark,
        lambda: zo.ops.apply_probe_(x, 0.5, 7, distribution=distribution),
        usual_code,
        rounds=7,
        at_least=4.0,
    )


@pytest.mark.parametrize("seeds", [96, 512])
def test_accumulate_over_generation_alone(benchmark: BenchmarkFixture, threads: int, seeds: int) -> None:
    x = torch.randn(10_000_000)
    c, s = rows(seeds)
    compare(
        benchmark,
        lambda: zo.ops.accumulate_probes_(x, c, s),
        lambda: _C.fold_probes(x.numel(), s.data_ptr(), len(s), 0),
        rounds=15,
        at_most=2.0,
    )


@pytest.mark.parametrize("seeds", [96, 512])
def test_accumulate_over_usual_code(benchmark: BenchmarkFixture, seeds: int) -> None:
    x = torch.randn(10_000_000)
    scratch, generator = torch.empty_like(x), torch.Generator()
    c, s = rows(seeds)
    few = 2  # of the seeds: the usual code costs the same for each
    compare(
        benchmark,
        lambda: zo.ops.accumulate_probes_(x, c, s),
        lambda: usual.accumulate(x, scratch, c[:few].tolist(), s[:few].tolist(), generator),
        rounds=7,
        at_least=300.0,
        rival_scale=seeds / few,
    )


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
def test_accumulate_by_instruction_set(benchmark: BenchmarkFixture, isa: str) -> None:
    """For the record: 96 seeds, each instruction set against the baseline."""
    if isa not in _C.supported_isas():
        pytest.skip(f"this processor lacks {isa}")
    x = torch.randn(1_000_000)
    c, s = rows(96)

    def run(name: str) -> None:
        _C.set_isa(name)
        zo.ops.accumulate_probes_(x, c, s)
        _C.set_isa("")

    compare(benchmark, lambda: run(isa), lambda: run("baseline"), rounds=7, at_least=0.0)
