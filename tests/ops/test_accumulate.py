"""accumulate_probes_: numbers of rows around groups and batches, extreme sums, forms of its arguments, options."""

import numpy as np
import pytest
import torch

import zo_kernels as zo
from tests.cases import DTYPES, EDGE, SEEDS, assert_parity, assert_same_bits, engines, make_values
from zo_kernels.ops.accumulate import quantise

# Around a group (3 or 4 seeds share a look-up) and a batch (24 groups: 72 or 96 seeds).
COUNTS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 13, 71, 72, 73, 95, 96, 97, 100, 144, 145, 192, 193, 600)


def make_rows(n):
    """n rows of mixed size; some seeds occur twice, some have the high bit set."""
    generator = torch.Generator().manual_seed(n)
    exponents = torch.randint(-12, 3, (n,), generator=generator)
    coeffs = torch.randn(n, generator=generator, dtype=torch.float64) * 2.0**exponents
    seeds = torch.tensor([s - 2**64 if s >= 2**63 else s for s in SEEDS]).repeat(n // 8 + 1)[:n]
    fresh = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)
    return coeffs, torch.where(torch.arange(n) % 4 == 3, seeds, fresh)


def dense(numel, coeffs, seeds, offset=0):
    """The sum in float64, which is exact for coefficients of few bits."""
    total = torch.zeros(numel, dtype=torch.float64)
    for coeff, seed in zip(coeffs, seeds, strict=True):
        total += coeff * zo.ops.probe(numel, int(seed), offset=offset, dtype=torch.float64)
    return total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", COUNTS)
def test_parity_for_each_number_of_rows(n, dtype):
    coeffs, seeds = make_rows(n)
    x = make_values(2500, dtype, seed=n)
    assert_parity(lambda t: zo.ops.accumulate_probes_(t, coeffs, seeds, offset=EDGE - 1024), x)


@pytest.mark.parametrize(("n", "numel"), [(96, 20000), (97, 8193), (600, 5000), (1, 600001)])
def test_parity_where_threads_share(n, numel):
    coeffs, seeds = make_rows(n)
    options = {"decay": 0.999, "undo_alpha": 0.25, "undo_seed": 8}
    x = make_values(numel, torch.float32)
    assert_parity(lambda t: zo.ops.accumulate_probes_(t, coeffs, seeds, offset=EDGE - 2176, **options), x)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 97, 600])
def test_sums_to_the_last_int32(n):
    """Integer coefficients with an absolute sum of 2^31 - 1, signed so that element 0 reaches it and element 1 does
    not overflow on the way."""
    total = 2**31 - 1
    coeffs = torch.full((n,), total // n, dtype=torch.float64)
    coeffs[0] += total % n
    seeds = torch.arange(n) - n // 2
    for seed, i in zip(seeds.tolist(), range(n), strict=True):
        coeffs[i] *= zo.ops.probe(1, seed).item()
    assert quantise(coeffs.numpy())[1] == 0
    for sign in (1, -1):
        x = torch.zeros(2049, dtype=torch.float64)
        result = assert_parity(lambda t: zo.ops.accumulate_probes_(t, sign * coeffs, seeds), x)  # noqa: B023
        assert result[0] == sign * total
        assert_same_bits(result, dense(2049, sign * coeffs, seeds) + 0.0)
        assert_parity(lambda t: zo.ops.accumulate_probes_(t, sign * coeffs, seeds), x.float())  # noqa: B023


def test_is_the_sum_of_its_rows():
    coeffs = torch.arange(-20, 21, dtype=torch.float64) / 64
    seeds = torch.arange(41) * 0x123456789ABCDEF - 2**60
    expected = dense(3000, coeffs, seeds, offset=2**41)
    for engine in engines():
        x = torch.full((3000,), 0.25, dtype=torch.float64)
        zo.ops.accumulate_probes_(x, coeffs, seeds, offset=2**41)
        assert_same_bits(x, expected + 0.25, engine)


def test_a_repeated_seed_counts_each_time():
    for engine in engines():
        x = zo.ops.accumulate_probes_(torch.zeros(1000), [0.5] * 8 + [-1.0, 1.0], [5] * 8 + [7, 7])
        assert torch.equal(x, 4 * zo.ops.probe(1000, 5)), engine


def test_one_row_of_a_power_of_two_is_apply_probe_():
    x = make_values(2500, torch.float32).nan_to_num()
    for engine in engines():
        one = zo.ops.apply_probe_(x.clone(), -0.125, -9, offset=640)
        assert_same_bits(zo.ops.accumulate_probes_(x.clone(), [-0.125], [-9], offset=640), one, engine)


def test_seeds_count_modulo_64_bits():
    for seed in (-1, -(2**63), -12345):
        low, high = (zo.ops.accumulate_probes_(torch.zeros(500), [1.0], [s]) for s in (seed, seed + 2**64))
        assert torch.equal(low, high)
        assert torch.equal(low, zo.ops.probe(500, seed + 2**64))
        assert not torch.equal(low, zo.ops.accumulate_probes_(torch.zeros(500), [1.0], [seed % 2**63]))


@pytest.mark.parametrize(
    ("coeffs", "seeds"),
    [
        ((0.5, -0.25, 2.0), (1, -2, 3)),
        (np.array([0.5, -0.25, 2.0]), np.array([1, -2, 3])),
        (np.array([0.5, -0.25, 2.0], np.float32), np.array([1, -2, 3], np.int32)),
        (np.array([2.0, -0.25, 0.5])[::-1], np.array([3, -2, 1])[::-1]),
        (np.array([0.5, -0.25, 2.0]), np.array([1, 2**64 - 2, 3], np.uint64)),
        (torch.tensor([0.5, -0.25, 2.0]), torch.tensor([1, -2, 3])),
        (torch.tensor([0.5, -0.25, 2.0], dtype=torch.bfloat16), [1, 2**64 - 2, 3]),
        (torch.tensor([0.5, 9, -0.25, 9, 2.0], dtype=torch.float64)[::2], torch.tensor([1, 9, -2, 9, 3])[::2]),
        (torch.tensor([0.5, -0.25, 2.0], requires_grad=True), torch.tensor([1, -2, 3])),
    ],
    ids=["tuples", "arrays", "narrow arrays", "reversed", "uint64", "tensors", "bfloat16", "strided", "requires grad"],
)
def test_forms_of_rows(coeffs, seeds):
    expected = zo.ops.accumulate_probes_(torch.ones(300), [0.5, -0.25, 2.0], [1, -2, 3])
    assert torch.equal(zo.ops.accumulate_probes_(torch.ones(300), coeffs, seeds), expected)


def test_expanded_rows():
    expected = zo.ops.accumulate_probes_(torch.zeros(300), [0.5] * 10, [3] * 10)
    actual = zo.ops.accumulate_probes_(torch.zeros(300), torch.tensor([0.5]).expand(10), torch.tensor([3]).expand(10))
    assert torch.equal(actual, expected)


def test_rows_are_not_written():
    coeffs, seeds = make_rows(10)
    before = coeffs.clone(), seeds.clone()
    zo.ops.accumulate_probes_(torch.zeros(300), coeffs, seeds)
    assert torch.equal(coeffs, before[0])
    assert torch.equal(seeds, before[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0.9},
        {"decay": 0.0},
        {"grid": 2.0**-6},
        {"grid": 2.0**-126},
        {"grid": 2.0**126},
        {"undo_alpha": -0.3, "undo_seed": 2**64 - 1},
        {"undo_alpha": 1e-50},  # 0 in float32, yet an addition: -0 becomes +0
        {"undo_alpha": 0.5, "undo_seed": 1, "decay": -1.5, "grid": 2.0**-10},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [0, 5])
def test_options(n, options, dtype):
    coeffs, seeds = make_rows(n)
    x = make_values(2500, dtype)
    assert_parity(lambda t: zo.ops.accumulate_probes_(t, coeffs, seeds, offset=128, **options), x, what=str(options))


def test_ties_on_the_grid_go_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.75]).repeat(400)
    for engine in engines():
        result = zo.ops.accumulate_probes_(x.clone(), [], [], grid=1.0)
        assert_same_bits(result, torch.tensor([0.0, 2.0, 2.0, -0.0, -2.0, 1.0]).repeat(400), engine)


def test_options_are_taken_in_order():
    """((1 - 1) * 0.5 + 3) to the grid of 2, ties to even: 4; any other order gives another number."""
    up = zo.ops.probe(300, 1) > 0
    x = torch.where(up, 1.0, 7.0)
    zo.ops.accumulate_probes_(x, [3.0], [1], decay=0.5, grid=2.0, undo_alpha=-1.0, undo_seed=1)
    assert torch.equal(x, torch.where(up, 4.0, 0.0))  # where down: (7 + 1) * 0.5 - 3 = 1, to even 0


def test_rounded_to_16_bits_once():
    """In bfloat16 256 + 1 is 256, so undoing and adding one at a time would lose both; in one pass it is 256 + 2."""
    p = zo.ops.probe(300, 1, dtype=torch.bfloat16)
    x = 256 * p
    zo.ops.accumulate_probes_(x, [1.0], [1], undo_alpha=1.0, undo_seed=1)
    assert torch.equal(x, 258 * p)
