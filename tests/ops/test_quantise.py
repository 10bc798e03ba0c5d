"""Coefficients as integers: the definition, in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import zo_kernels as zo
from zo_kernels.ops.accumulate import quantise

# Below 2^120 even 64 of them stay in range.
coefficients = st.floats(-(2.0**120), 2.0**120, allow_nan=False)
tables = st.one_of(
    st.lists(coefficients, max_size=64),
    st.lists(st.floats(-1, 1), max_size=64),
    st.lists(st.integers(-(2**31), 2**31).map(float), max_size=5),
    st.lists(st.sampled_from([0.0, -0.0, 5e-324, 2.0**-127, 2.0**-126, -(2.0**-125)]), max_size=5),
)


def sum_of_integers(coeffs, shift):
    """sum |rint(c * 2^shift)| with exact arithmetic; round() of a Fraction takes ties to even."""
    return sum(abs(round(Fraction(c) * Fraction(2) ** shift)) for c in coeffs)


@settings(deadline=None, max_examples=300)
@given(tables)
@example([2.0**31 - 1])
@example([2.0**31])
@example([2.0**30, 2.0**30])
@example([2.0**30, 2.0**30 - 1])
@example([1.0 - 2.0**-32])  # rounds up to the limit
@example([2.0**-126, 2.0**100])
@example([0.5] * 64)
def test_the_largest_shift_whose_sum_stays_below_2_31(coeffs):
    quantised, shift = quantise(np.array(coeffs))
    assert (quantised.dtype, quantised.shape) == (np.int32, (len(coeffs),))
    assert quantised.tolist() == [round(Fraction(c) * Fraction(2) ** shift) for c in coeffs]
    assert sum(abs(q) for q in quantised.tolist()) < 2**31
    assert -96 <= shift <= 126
    if any(coeffs):
        assert shift == 126 or sum_of_integers(coeffs, shift + 1) >= 2**31


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-10, 1e10), min_size=1, max_size=64), st.integers(-20, 20))
def test_error_and_scaling(coeffs, exponent):
    quantised, shift = quantise(np.array(coeffs))
    total = sum(map(Fraction, coeffs))
    for q, c in zip(quantised.tolist(), coeffs, strict=True):
        # One part in 2^31 of the sum (and what rounding added to it).
        assert abs(q * Fraction(2) ** -shift - Fraction(c)) <= total / (2**31 - Fraction(len(coeffs), 2))
    scaled, moved = quantise(np.ldexp(coeffs, exponent))  # a power of two changes the shift alone
    assert (scaled.tolist(), moved) == (quantised.tolist(), shift - exponent)


def test_nothing_to_quantise():
    for coeffs in ([], [0.0], [0.0, -0.0]):
        quantised, _ = quantise(np.array(coeffs))
        assert quantised.tolist() == [0] * len(coeffs)


def test_largest_sum():
    just_below = np.nextafter(2.0**127, 0)
    quantised, shift = quantise(np.array([2.0**126, 2.0**126 - 2.0**96]))
    assert (quantised.tolist(), shift) == ([2**30, 2**30 - 1], -96)
    # The largest sum there is, times 2^96, is a float32.
    x = zo.ops.accumulate_probes_(torch.zeros(200), [2.0**127 - 2.0**96], [1])
    assert bool(x.isfinite().all())
    for coeffs in ([2.0**127], [-(2.0**127)], [2.0**126, 2.0**126], [1e308] * 3, [just_below]):
        with pytest.raises(ValueError, match="coefficients are too large for float32"):
            quantise(np.array(coeffs))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_names_the_first_coefficient_that_is_not_finite(value):
    with pytest.raises(ValueError, match=rf"coefficients must be finite, but coeffs\[2\] is {value}"):
        quantise(np.array([0.0, 1e308, value, float("nan")]))
