"""The reference backend, on which every parity test rests, against scalars: NumPy's IEEE arithmetic for the compute
dtypes, exact fractions for the rounding to 16 bits."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import zo_kernels as zo
from tests.cases import DTYPES, EDGE, assert_same_bits, make_values, special_values
from zo_kernels.backends import BACKENDS
from zo_kernels.ops.accumulate import quantise
from zo_kernels.philox import probe_bits

REFERENCE = BACKENDS["reference"]

# Bits of the significand and exponent of the smallest normal number.
FORMATS = {torch.bfloat16: (8, -126), torch.float16: (11, -14)}

NUMEL, OFFSET = 300, EDGE - 256


@pytest.fixture(autouse=True)
def reference():
    with zo.backend("reference"), np.errstate(all="ignore"):
        yield


def compute(dtype):
    return np.float64 if dtype == torch.float64 else np.float32


def to_dtype(value, dtype):
    """`value` (a NumPy scalar) in `dtype`, as a Python float."""
    if dtype == torch.float64:
        return float(value)
    value = np.float32(value)
    if dtype == torch.float32 or not np.isfinite(value):
        return float(value)
    precision, smallest = FORMATS[dtype]
    exponent = max(math.frexp(value)[1] - 1, smallest)
    unit = Fraction(2) ** (exponent - precision + 1)
    rounded = float(round(Fraction(float(value)) / unit) * unit)  # Python rounds ties to even
    return math.copysign(math.inf if abs(rounded) > torch.finfo(dtype).max else rounded, value)


def signs(seed, numel=NUMEL):
    return np.where(probe_bits(numel, seed, OFFSET), 1, -1).tolist()


def scalars(x):
    return [compute(x.dtype)(value) for value in x.to(torch.float64).tolist()]


def assert_values(actual, expected):
    assert_same_bits(actual, torch.tensor(expected, dtype=torch.float64).to(actual.dtype))
    # The cast above must not have rounded: `expected` are values of the dtype already.
    assert_same_bits(actual.to(torch.float64), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probe(dtype):
    assert_values(zo.ops.probe(NUMEL, 5, offset=OFFSET, dtype=dtype), signs(5))


@pytest.mark.parametrize("alpha", [0.3, -1e-7, 1e-42, 3e38])
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply_probe(dtype, out_dtype, alpha):
    x = make_values(NUMEL, dtype)
    step = compute(dtype)(alpha)
    expected = [to_dtype(v + step * sign, out_dtype) for v, sign in zip(scalars(x), signs(-7), strict=True)]
    assert_values(zo.ops.apply_probe(x, alpha, -7, offset=OFFSET, dtype=out_dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swap_probe_rounds_both_sums(dtype):
    x = make_values(NUMEL, dtype)
    leave, enter = compute(dtype)(1 / 3), compute(dtype)(-1 / 7)
    expected = [
        to_dtype((v + leave * a) + enter * b, dtype) for v, a, b in zip(scalars(x), signs(1), signs(2), strict=True)
    ]
    assert_values(zo.ops.swap_probe_(x, 1 / 3, 1, -1 / 7, 2, offset=OFFSET), expected)


@pytest.mark.parametrize("grid", [0.0, 2.0**-8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accumulate_probes_with_every_option(dtype, grid):
    x = make_values(NUMEL, dtype)
    coeffs, seeds = [0.3, -1e-3, 0.7], [3, 4, -5]
    quantised, shift = quantise(np.array(coeffs))
    rows = [signs(seed) for seed in seeds]
    number = compute(dtype)
    expected = []
    for i, v in enumerate(scalars(x)):
        total = sum(int(q) * row[i] for q, row in zip(quantised, rows, strict=True))
        v = v + number(-0.1) * signs(9)[i]
        v = v * number(0.9)
        v = v + number(total) * number(2.0**-shift)
        if grid:
            v = np.rint(v / number(grid)) * number(grid)
        expected.append(to_dtype(v, dtype))
    zo.ops.accumulate_probes_(x, coeffs, seeds, offset=OFFSET, decay=0.9, grid=grid, undo_alpha=-0.1, undo_seed=9)
    assert_values(x, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_survive_the_oracle(dtype):
    """The scalar rounding is itself checked: a value of the dtype rounds to itself."""
    special = special_values(dtype)
    assert_values(special, [to_dtype(value, dtype) for value in scalars(special)])


def test_long_tensors_are_cut_into_chunks():
    """One more element than a chunk of the reference: the second chunk continues the probe."""
    numel = (1 << 20) + 1
    x = zo.ops.apply_probe_(torch.zeros(numel), 1.0, 3, offset=128)
    assert torch.equal(x > 0, torch.from_numpy(probe_bits(numel, 3, 128)))


def test_is_always_there():
    assert REFERENCE.unavailable() is None
