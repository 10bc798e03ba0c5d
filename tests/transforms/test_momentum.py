"""Momentum on tables is momentum on the gradients they stand for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.estimators.evaluators import probes, seeds_of
from tests.transforms.cases import CONTEXT, table
from zo_kernels import SeedGradient
from zo_kernels.transforms import momentum

NUMEL = 50


def tables(lengths):
    seeds = seeds_of(sum(lengths))
    coeffs = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [SeedGradient(s, c) for s, c in zip(seeds.split(lengths), coeffs.split(lengths), strict=True)]


def written(gradient):
    return gradient.coeffs @ probes(gradient.seeds, NUMEL) if len(gradient) else torch.zeros(NUMEL).double()


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    beta=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    window=st.integers(1, 10),
)
def test_it_is_the_truncated_sum(lengths, beta, window):
    steps, transform = tables(lengths), momentum(beta, window)
    state = transform.init()
    for t, gradient in enumerate(steps):
        result, state = transform.update(gradient, state, CONTEXT)
        recent = range(max(0, t - window + 1), t + 1)
        expected = sum(beta ** (t - k) * written(steps[k]) for k in recent)
        torch.testing.assert_close(written(result), expected, rtol=1e-12, atol=1e-12)
        assert len(result) == sum(lengths[k] for k in recent)
        assert state["rows"].tolist() == [lengths[k] for k in recent]


def test_within_the_window_it_is_the_momentum_of_torch():
    steps, transform = tables([3] * 6), momentum(0.9, 6)
    state = transform.init()
    parameter = torch.nn.Parameter(torch.zeros(NUMEL).double())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    theta = torch.zeros(NUMEL).double()
    for gradient in steps:
        parameter.grad = written(gradient)
        optimizer.step()
        result, state = transform.update(gradient, state, CONTEXT)
        theta -= 0.1 * written(result)
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_the_oldest_rows_come_first():
    transform = momentum(0.5, 2)
    state = transform.init()
    for step in range(3):
        result, state = transform.update(table([1.0, 2.0], first=10 * step), state, CONTEXT)
    assert result.seeds.tolist() == [10, 11, 20, 21]
    assert result.coeffs.tolist() == [0.5, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_betas_out_of_range(beta):
    with pytest.raises(ValueError, match=r"a beta in \[0, 1\], not"):
        momentum(beta, 3)


@pytest.mark.parametrize("window", [0, -1, 2.0])
def test_windows_out_of_range(window):
    with pytest.raises(ValueError, match="an integer from 1 to 2\\^31 - 1 as its window, not"):
        momentum(0.9, window)
