"""Loss differences of the population forward against float64 central differences: what speed may cost."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import zo_kernels as zo
from bench.compare import record
from bench.test_population import LONG, TINY, Setting
from zo_kernels.backends import backend_for
from zo_kernels.philox import probe_seeds

SEEDS = torch.from_numpy(probe_seeds(0, 0, 64))


@pytest.mark.parametrize("setting", [TINY._replace(batch_size=64), LONG], ids=["tiny, B=64", "B=1"])
@pytest.mark.parametrize(
    ("precision", "exponent", "bar"),
    [
        pytest.param("float32", -7, 0.9999, id="float32, eps=2^-7"),
        pytest.param("float32", -10, 0.999, id="float32, eps=2^-10"),
        pytest.param("bfloat16", -7, 0.999, id="bfloat16, eps=2^-7"),
        pytest.param("bfloat16", -10, None, id="bfloat16, eps=2^-10"),
    ],
)
def test_correlation(
    benchmark: BenchmarkFixture, setting: Setting, precision: str, exponent: int, bar: float | None
) -> None:
    """Of L+ - L- over 64 probes, with the reference backend's in float64 at the same float32 weights."""
    if precision not in backend_for("cpu").precisions():
        pytest.skip(f"this processor has no {precision} products")
    model, (tokens, targets) = setting.model(), setting.batch()
    losses = benchmark.pedantic(
        lambda: model.population_loss(tokens, targets, SEEDS, 2.0**exponent, precision=precision)
    )
    exact = exact_losses(setting, exponent)
    differences = torch.stack([losses[:, 0] - losses[:, 1], exact[:, 0] - exact[:, 1]])
    record(benchmark, float(torch.corrcoef(differences)[0, 1]), at_least=bar)


@cache
def exact_losses(setting: Setting, exponent: int) -> Tensor:
    """By the reference backend, in float64 at the model's float32 weights."""
    with zo.backend("reference"):
        return setting.model().population_loss(*setting.batch(), SEEDS, 2.0**exponent)
