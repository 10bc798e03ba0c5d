"""The distributions of probes: the definition, written a second time from its text, what follows from it, refusals."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zo_kernels as zo
from tests.cases import DISTRIBUTIONS, DTYPES, EDGE, LAST, assert_same_bits, bits, make_values
from tests.test_philox import blocks, scalar_bit, scalar_word, seeds
from zo_kernels.distributions import check_distribution, draw, is_exact_in_place, variance
from zo_kernels.philox import Stream, probe_bits

ALL = ("rademacher", *DISTRIBUTIONS)
each = pytest.mark.parametrize("distribution", ALL)


def scalar_element(distribution, seed, j):
    """Element j in Python's float64: that of a uniform or normal before the rounding of float32 arithmetic."""
    if distribution == "uniform":
        word = scalar_word(seed, j, Stream.UNIFORM, j % 32)
        return (2 * (word >> 8) + 1 - 2**24) / 2**24 * math.sqrt(3)
    if distribution == "normal":
        first = j - 32 if j // 32 % 2 else j
        a, b = (scalar_word(seed, i, Stream.NORMAL, i % 32) for i in (first, first + 32))
        r = math.sqrt(-2 * math.log(((a >> 1) + 0.5) / 2**31))
        return r * (math.cos if first == j else math.sin)(2 * math.pi * (b / 2**32))
    sparsity = int(distribution.removeprefix("sparse-"))
    kept = all(scalar_bit(seed, j, Stream.SPARSITY, number) for number in range(int(math.log2(sparsity))))
    return kept * (1 if scalar_bit(seed, j) else -1)


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "sparse-4"])
@given(seed=seeds, block=blocks, numel=st.integers(1, 300), data=st.data())
def test_definition(distribution, seed, block, numel, data):
    offset = min(128 * block, LAST - 127 - 512)
    z = draw(distribution, numel, seed, offset)
    assert (z.shape, z.dtype) == ((numel,), np.float32)
    for i in {0, numel - 1, *data.draw(st.lists(st.integers(0, numel - 1), max_size=5))}:
        expected = scalar_element(distribution, seed, offset + i)
        ulps = {"normal": 5, "uniform": 1}.get(distribution, 0)
        # Python's pi is not exact: next to zero its cosine is wrong by 2^-52.
        assert abs(float(z[i]) - expected) <= ulps * np.spacing(np.float32(abs(expected))) + (ulps > 0) * 2e-14


@pytest.mark.parametrize(
    ("distribution", "digest"),
    [
        ("rademacher", "52fcfc4720af5a9d"),
        ("normal", "3409067ece269e86"),
        ("uniform", "a75871c4dfa38304"),
        ("sparse-2", "04563d41093c9bd1"),
        ("sparse-64", "6c9cbaae8439eeb1"),
        ("sparse-65536", "463f1dc7ca173223"),
    ],
)
def test_seeds_of_old_mean_the_same_probes(distribution, digest):
    """To the last bit, for a seed is all that is stored of a probe."""
    z = draw(distribution, 2**17, 42, EDGE - 1280)
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest()[:16] == digest


@each
@given(seed=seeds, block=blocks, numel=st.integers(0, 3000), skipped=st.integers(0, 20))
def test_a_slice_knows_its_elements(distribution, seed, block, numel, skipped):
    offset = min(128 * block, 2**62)
    whole = draw(distribution, numel + 128 * skipped, seed, offset)
    assert np.array_equal(whole[128 * skipped :], draw(distribution, numel, seed, offset + 128 * skipped))


def test_sparse_probes_are_nested_parts_of_the_rademacher_probe():
    z = np.where(probe_bits(2**16, 9), 1, -1)
    for m in range(1, 17):
        thinner = draw(f"sparse-{2**m}", 2**16, 9)
        assert bool((thinner[thinner != 0] == z[thinner != 0]).all())
        assert not np.signbit(thinner[thinner == 0]).any()
        z = thinner


@pytest.mark.parametrize("name", ["cpu", "reference"])
@each
def test_rademacher_by_either_way(name, distribution):
    """The ops for all distributions make Rademacher probes, and their sums, as the Rademacher ops do."""
    ops, x = torch.ops.zo_kernels, torch.randn(3000)
    rows = torch.randn(7, dtype=torch.float64), torch.arange(7)
    options = {"offset": 256, "decay": 0.9, "grid": 2.0**-20, "undo_alpha": 0.25, "undo_seed": 3}
    with zo.backend(name):
        if distribution == "rademacher":
            assert_same_bits(ops.probe_from("rademacher", 3000, 7, offset=0, dtype=x.dtype, device=x.device),
                             zo.ops.probe(3000, 7))  # fmt: skip
            expected = zo.ops.accumulate_probes_(x.clone(), *rows, **options)
        else:
            expected = zo.ops.accumulate_probes_(x.clone(), *rows, distribution=distribution, **options)
        ops.accumulate_probes_from_(distribution, x, *rows, **options)
        assert_same_bits(x, expected)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_sees_the_same_numbers(distribution, dtype):
    z = torch.from_numpy(draw(distribution, 5000, 11, EDGE - 256))
    made = zo.ops.probe(5000, 11, offset=EDGE - 256, dtype=dtype, distribution=distribution)
    assert_same_bits(made, z.to(dtype))
    x = make_values(5000, dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    stepped = zo.ops.apply_probe(x, 0.3, 11, offset=EDGE - 256, distribution=distribution)
    assert_same_bits(stepped, (x.to(compute) + torch.tensor(0.3, dtype=compute) * z.to(compute)).to(dtype))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_float64_in_the_order_of_the_rows(distribution, dtype):
    coeffs, rows = [1e9, 1.0, -1e9, 0.1], [1, 2, 1, 3]
    total = np.zeros(1000)
    for c, seed in zip(coeffs, rows, strict=True):
        total += c * draw(distribution, 1000, seed).astype(np.float64)
    expected = torch.from_numpy(total).to(dtype)
    assert_same_bits(zo.ops.accumulate_probes_(torch.zeros(1000, dtype=dtype), coeffs, rows, distribution=distribution),
                     expected)  # fmt: skip


@pytest.mark.parametrize("distribution", ["sparse-2", "sparse-64"])
def test_sums_of_sparse_probes_do_not_depend_on_the_order_of_the_rows(distribution):
    coeffs, rows = torch.randn(50, dtype=torch.float64), torch.arange(50)
    x = torch.randn(2000)
    there = zo.ops.accumulate_probes_(x.clone(), coeffs, rows, distribution=distribution)
    back = zo.ops.accumulate_probes_(x.clone(), coeffs.flip(0), rows.flip(0), distribution=distribution)
    assert_same_bits(there, back)


@each
def test_in_place_exactness_is_that_of_sparse_and_rademacher_probes(distribution):
    x = torch.randint(-(2**20), 2**20, (5000,)).float() * 2.0**-20
    there = zo.ops.apply_probe_(x.clone(), 2.0**-10, 5, distribution=distribution)
    back = zo.ops.apply_probe_(there, -(2.0**-10), 5, distribution=distribution)
    assert torch.equal(back, x) == is_exact_in_place(distribution) == (distribution not in ("normal", "uniform"))


@each
def test_undoing_a_probe(distribution):
    x = torch.randn(3000, dtype=torch.float64)
    moved = zo.ops.apply_probe(x, -0.25, 5, offset=128, distribution=distribution)
    options = {"undo_alpha": 0.25, "undo_seed": 5, "offset": 128, "distribution": distribution}
    back = zo.ops.accumulate_probes_(moved, [], [], **options)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["Normal", "sparse", "sparse-", "sparse-0", "sparse-1", "sparse-3", "sparse-131072",
                                  "sparse-08", "sparse- 8", "sparse-8\n", "sparse--8", "", None, 3])  # fmt: skip
def test_unknown_distributions(name):
    expected = (
        "^distribution must be 'rademacher', 'normal', 'uniform' or 'sparse-K' with K a power of two from 2 to 65536"
    )
    for function in (check_distribution, variance, is_exact_in_place, lambda name: draw(name, 5, 3)):
        with pytest.raises(ValueError, match=f"{expected}, not "):
            function(name)
    x = torch.ones(5)
    for op in (
        lambda **kwargs: zo.ops.probe(5, 3, **kwargs),
        lambda **kwargs: zo.ops.apply_probe_(x, 0.5, 3, **kwargs),
        lambda **kwargs: zo.ops.apply_probe(x, 0.5, 3, **kwargs),
        lambda **kwargs: zo.ops.apply_probe(x, 0.5, 3, out=x, **kwargs),
        lambda **kwargs: zo.ops.accumulate_probes_(x, [0.5], [3], **kwargs),
    ):
        with pytest.raises(ValueError, match=expected):
            op(distribution=name)
    assert x.tolist() == [1.0] * 5
    assert x._version == 0


def test_variances():
    assert [variance(name) for name in ALL] == [1, 1, 1, 1 / 2, 1 / 64, 1 / 65536]


NAN, INF = float("nan"), float("inf")


@each
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, **d: zo.ops.apply_probe_(x, NAN, 3, **d), "alpha is not finite: nan"),
        (lambda x, **d: zo.ops.apply_probe_(x, 1e39, 3, **d), "alpha is too large for float32"),
        (lambda x, **d: zo.ops.apply_probe(x, INF, 3, **d), "alpha is not finite: inf"),
        (
            lambda x, **d: zo.ops.apply_probe_(x, 0.5, 3, offset=64, **d),
            "offset must be a non-negative multiple of 128",
        ),
        (lambda x, **d: zo.ops.apply_probe(x, 0.5, 3, out=x[1:], **d), r"out has shape \(4,\)"),
        (lambda x, **d: zo.ops.apply_probe(x[1:], 0.5, 3, out=x[:4], **d), "out overlaps x in memory"),
        (lambda x, **d: zo.ops.apply_probe_(x[::2], 0.5, 3, **d), "x must be contiguous"),
        (
            lambda x, **d: zo.ops.accumulate_probes_(x, [1.0, NAN], [3, 4], **d),
            r"must be finite, but coeffs\[1\] is nan",
        ),
        (lambda x, **d: zo.ops.accumulate_probes_(x, [1e308, 1e308], [3, 4], **d), "too large for float32"),
        (lambda x, **d: zo.ops.accumulate_probes_(x, [2.0**127], [3], **d), "too large for float32"),
        (lambda x, **d: zo.ops.accumulate_probes_(x, [1.0], [3, 4], **d), "must have the same length, not 1 and 2"),
        (lambda x, **d: zo.ops.accumulate_probes_(x, [1.0], [3], decay=INF, **d), "decay is not finite: inf"),
        (lambda x, **d: zo.ops.accumulate_probes_(x, [1.0], [3], grid=0.3, **d), "grid must be 0 or a power of two"),
        (lambda x, **d: zo.ops.accumulate_probes_(x, [1.0], [3], undo_alpha=NAN, **d), "undo_alpha is not finite: nan"),
    ],
)
def test_refusals_leave_x_as_it_was(distribution, call, message):
    x = make_values(5, torch.float32)
    before, version = bits(x).clone(), x._version
    with pytest.raises(ValueError, match=message):
        call(x, distribution=distribution)
    assert torch.equal(bits(x), before)
    assert x._version == version


def test_the_largest_sum_is_a_float32():
    assert zo.ops.accumulate_probes_(torch.zeros(4096), [2.0**123], [3], distribution="normal").isfinite().all()
    with pytest.raises(ValueError, match=r"^coefficients are too large for float32: .* not below 2\^124$"):
        zo.ops.accumulate_probes_(torch.zeros(4096), [2.0**123, -(2.0**123)], [3, 4], distribution="normal")
