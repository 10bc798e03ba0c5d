"""Stochastic rounding to 16 bits: what docs/contract.md says, in exact arithmetic, and right in the mean.

test_parity.py and tests/backends compare the backends.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.cases import SEEDS, assert_same_bits, bits, make_values
from zo_kernels.philox import rounding_bits

HALVES = [(torch.bfloat16, 8, -133), (torch.float16, 11, -24)]
"""Each with its significant bits, and the exponent of its smallest number."""

each_half = pytest.mark.parametrize(("dtype", "digits", "lowest"), HALVES, ids=["bfloat16", "float16"])


def rounded(v: float, random: int, digits: int, lowest: int) -> float:
    """The contract with fractions."""
    if not math.isfinite(v) or v == 0:
        return v
    unit = Fraction(2) ** max(math.frexp(v)[1] - digits, lowest)
    steps = (math.floor(abs(Fraction(v)) / unit * 2**16) + random) // 2**16
    return math.copysign(float(steps * unit), v)


@each_half
def test_the_rule(dtype: torch.dtype, digits: int, lowest: int) -> None:
    """Of what decay makes of special and other values, at several sizes."""
    values = torch.cat([make_values(700, dtype) * 2.0**k for k in (0, -13, -24)])
    for seed in SEEDS[:3]:
        products = values.float() * torch.tensor(0.7) + 0.0
        random = rounding_bits(len(values), seed, 256).tolist()
        expected = [rounded(v, r, digits, lowest) for v, r in zip(products.tolist(), random, strict=True)]
        x = zo.ops.accumulate_probes_(values.clone(), [], [], offset=256, decay=0.7, rounding_seed=seed)
        assert_same_bits(x, torch.tensor(expected, dtype=torch.float64).to(dtype))


def test_values_that_must_never_change() -> None:
    x = torch.tensor([1.0, -1.0, 3e-6, 0.001, -123.0, 6e4, 0.3, -7e-8])
    found = []
    for dtype, *_ in HALVES:
        half = zo.ops.accumulate_probes_(x.to(dtype), [2**-9, 3e-5], [5, 6], offset=128, rounding_seed=7)
        found.append(bits(half).tolist())
    assert found == GOLDEN


GOLDEN = [
    [16255, -16512, -17663, -17806, -15626, 18282, 16027, 15100],
    [15356, -17406, -26610, -27761, -10320, 31571, 13525, 6113],
]


def mean_of(x: Tensor) -> float:
    return float(x.double().mean())


@each_half
@pytest.mark.parametrize("value", [1.0, -3.0, 2.0**-20, 1e-6, 40000.0])
def test_the_mean_is_right(dtype: torch.dtype, digits: int, lowest: int, value: float) -> None:
    """That of 2^17 elements within 5 of its standard errors, although a step is smaller than the last bit."""
    x = torch.full((1 << 17,), value, dtype=torch.float64).to(dtype)
    before, decay = mean_of(x), 1 + 2.0**-12
    zo.ops.accumulate_probes_(x, [], [], decay=decay, rounding_seed=11)
    spacing = 2.0 ** max(math.frexp(value)[1] - digits, lowest)
    assert set(x.double().unique().tolist()) == {before, math.copysign(abs(before) + spacing, before)}
    share = abs(before) * (decay - 1) / spacing
    error = spacing * math.sqrt(share * (1 - share) / len(x))
    assert abs(mean_of(x) - before * decay) < 5 * error


@each_half
def test_numbers_that_fit_stay(dtype: torch.dtype, digits: int, lowest: int) -> None:
    """Every number that there is, infinities and NaN too."""
    x = torch.arange(2**16).to(torch.uint16).view(dtype)
    for seed in SEEDS[:2]:
        assert_same_bits(zo.ops.accumulate_probes_(x.clone(), [], [], rounding_seed=seed), x + 0.0)
