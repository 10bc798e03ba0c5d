"""The distributions of probes: the definition, written a second time from its text, what follows from it, refusals."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zo_kernels as zo
from tests.cases import DISTRIBUTIONS, DTYPES, EDGE, LAST, assert_same_bits, engines, make_values
from tests.test_philox import blocks, scalar_bit, scalar_word, seeds
from zo_kernels import _C
from zo_kernels.distributions import check_distribution, draw, is_exact_in_place, parse, variance
from zo_kernels.ops.accumulate import quantise
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


def test_rademacher_by_either_way():
    """The compiled kernels for all distributions make Rademacher probes, and their sums, as the Rademacher ones do."""
    (coeffs, shift), seeds = quantise(np.random.default_rng(0).normal(size=7)), np.arange(7)
    kind, numbers, undo = parse("rademacher"), coeffs.astype(np.float64), (0.25, 3, 0.9, 2.0**-20, None)
    for engine in engines():
        x, once, again = (torch.linspace(-1, 1, 3000) for _ in range(3))
        _C.probe(once.data_ptr(), 0, 3000, 7, 256)
        _C.probe_from(*kind, again.data_ptr(), 0, 3000, 7, 256)
        assert_same_bits(again, once, engine)
        _C.apply_probe(x.data_ptr(), 0, once.data_ptr(), 0, 3000, 0.3, 7, 256)
        _C.apply_probe_from(*kind, x.data_ptr(), 0, again.data_ptr(), 0, 3000, 0.3, 7, 256)
        assert_same_bits(again, once, engine)
        _C.accumulate_probes(once.data_ptr(), 0, 3000, coeffs.ctypes.data, seeds.ctypes.data, 7, shift, 256, *undo)
        _C.accumulate_probes_from(
            *kind, again.data_ptr(), 0, 3000, numbers.ctypes.data, seeds.ctypes.data, 7, 2.0**-shift, 256, *undo
        )
        assert_same_bits(again, once, engine)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@each
def test_the_registered_op_is_the_function(name, distribution):
    x, rows = torch.randn(3000), (torch.randn(7, dtype=torch.float64), torch.arange(7))
    options = {"offset": 256, "decay": 0.9, "grid": 2.0**-20, "undo_alpha": 0.25, "undo_seed": 3}
    with zo.backend(name):
        expected = zo.ops.accumulate_probes_(x.clone(), *rows, distribution=distribution, **options)
        torch.ops.zo_kernels.accumulate_probes_(x, *rows, distribution=distribution, **options)
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
    of_rank_2 = zo.ops.apply_probe(x.view(50, 100), 0.3, 11, offset=EDGE - 256, distribution=distribution)
    assert_same_bits(of_rank_2, stepped.view(50, 100))


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


def test_the_largest_sum_is_a_float32():
    assert zo.ops.accumulate_probes_(torch.zeros(4096), [2.0**123], [3], distribution="normal").isfinite().all()
    with pytest.raises(ValueError, match=r"^coefficients are too large for float32: .* not below 2\^124$"):
        zo.ops.accumulate_probes_(torch.zeros(4096), [2.0**123, -(2.0**123)], [3, 4], distribution="normal")


def digest():
    """Of probes of all distributions and of a sum of them."""
    parts = []
    for distribution in DISTRIBUTIONS:
        parts.append(zo.ops.probe(70000, -3, offset=2**39 - 1280, distribution=distribution))
        parts.append(zo.ops.accumulate_probes_(torch.zeros(5000), [0.1, -0.3], [1, 2], distribution=distribution))
    return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.slow
def test_processes_on_other_instruction_sets_draw_the_same(isa):
    code = "from tests.ops.test_distributions import digest, zo, _C; print(_C.active_isa(), digest())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ZO_KERNELS_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    with zo.backend("reference"):
        assert run.stdout == f"{isa} {digest()}\n"
