"""What holds for any seed, offset and length, and parity on random ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zo_kernels as zo
from tests.cases import DISTRIBUTIONS, DTYPES, EDGE, LAST, assert_parity, assert_same_bits, engines, make_values

fuzz = settings(deadline=None, max_examples=60)
fuzz_distributions = settings(fuzz, max_examples=120)

dtypes = st.sampled_from(DTYPES)
distributions = st.just("rademacher") | st.sampled_from(DISTRIBUTIONS)
seeds = st.integers(-(2**63), 2**64 - 1)
sizes = st.one_of(st.integers(0, 300), st.integers(0, 5000), st.sampled_from([2048, 4096, 40000]))
leads = st.integers(0, 9)
alphas = st.one_of(st.floats(-4, 4), st.floats(-(2.0**127), 2.0**127), st.sampled_from([2.0**-20, -0.0, 1e-40]))
offsets = st.one_of(
    st.integers(0, 100),
    st.integers(0, LAST // 128 - 400),
    st.integers(1, 2**23).flatmap(lambda k: st.integers(k * 2**32 - 40, k * 2**32)),  # to straddle 2^39 * k
).map(lambda block: 128 * block)
rows = st.lists(st.tuples(st.floats(-1e3, 1e3), seeds), max_size=14)


def columns(table):
    return [c for c, _ in table], [s for _, s in table]


@fuzz_distributions
@given(distributions, dtypes, sizes, seeds, offsets)
def test_probe_parity(distribution, dtype, numel, seed, offset):
    options = {"offset": offset, "dtype": dtype, "distribution": distribution}
    with zo.backend("reference"):
        expected = zo.ops.probe(numel, seed, **options)
    for engine in engines(numel):
        assert_same_bits(zo.ops.probe(numel, seed, **options), expected, engine)


@fuzz_distributions
@given(distributions, dtypes, sizes, leads, offsets, alphas, seeds)
def test_apply_probe_parity(distribution, dtype, numel, lead, offset, alpha, seed):
    assert_parity(
        lambda t: zo.ops.apply_probe_(t, alpha, seed, offset=offset, distribution=distribution),
        make_values(numel, dtype),
        lead,
    )


@fuzz
@given(dtypes, sizes, leads, offsets, alphas, seeds, alphas, seeds)
def test_swap_probe_parity(dtype, numel, lead, offset, alpha, seed, next_alpha, next_seed):
    assert_parity(
        lambda t: zo.ops.swap_probe_(t, alpha, seed, next_alpha, next_seed, offset=offset),
        make_values(numel, dtype),
        lead,
    )


@fuzz_distributions
@given(distributions, dtypes, sizes, leads, offsets, rows, alphas, alphas, st.sampled_from([0.0, 2.0**-15, 1.0]), seeds)
def test_accumulate_probes_parity(distribution, dtype, numel, lead, offset, table, decay, undo_alpha, grid, undo_seed):
    coeffs, row_seeds = columns(table)
    options = {"decay": decay, "undo_alpha": undo_alpha, "undo_seed": undo_seed, "grid": grid}
    assert_parity(
        lambda t: zo.ops.accumulate_probes_(t, coeffs, row_seeds, offset=offset, distribution=distribution, **options),
        make_values(numel, dtype),
        lead,
    )


@settings(deadline=None, max_examples=30)
@given(distributions, dtypes, st.integers(0, 40), st.integers(0, 3000), offsets, alphas, seeds, rows)
def test_an_op_on_a_slice_is_the_slice_of_the_op(distribution, dtype, skipped, numel, offset, alpha, seed, table):
    offset = min(offset, LAST - 2**20 - 127)
    start = 128 * skipped
    x = make_values(start + numel + 77, dtype)
    coeffs, row_seeds = columns(table)
    part = slice(start, start + numel)
    for op in (
        lambda t, **at: zo.ops.apply_probe_(t, alpha, seed, **at),
        lambda t, **at: zo.ops.apply_probe(t, alpha, seed, dtype=torch.bfloat16, **at),
        lambda t, offset, distribution: zo.ops.swap_probe_(t, alpha, seed, -alpha, seed ^ 1, offset=offset),
        lambda t, **at: zo.ops.accumulate_probes_(t, coeffs, row_seeds, decay=0.5, undo_alpha=alpha, **at),
        lambda t, **at: zo.ops.probe(t.numel(), seed, dtype=dtype, **at),
    ):
        whole = op(x.clone(), offset=offset, distribution=distribution)[part]
        assert_same_bits(op(x[part].clone(), offset=offset + start, distribution=distribution), whole)


@settings(deadline=None, max_examples=30)
@given(dtypes, st.integers(0, 3000), rows.flatmap(lambda table: st.tuples(st.just(table), st.permutations(table))))
def test_order_of_rows_does_not_matter(dtype, numel, tables):
    x = make_values(numel, dtype)
    results = [zo.ops.accumulate_probes_(x.clone(), *columns(table)) for table in tables]
    assert_same_bits(results[0], results[1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.integers(-30, 10), st.lists(st.tuples(st.integers(1, 2**22), seeds), max_size=9))
def test_adding_and_removing_probes_on_the_grid_is_exact(numel, exponent, terms):
    """float32 on a grid g with |x| + |alpha| < 2^24 g: every x +- alpha is representable."""
    grid = 2.0**exponent
    x = torch.randint(-(2**23), 2**23, (numel,), generator=torch.Generator().manual_seed(numel)).float() * grid
    for engine in engines():
        theta = x.clone()
        for multiple, seed in terms:
            zo.ops.apply_probe_(theta, multiple * grid, seed)
            assert not torch.equal(theta, x)
            zo.ops.apply_probe_(theta, -multiple * grid, seed)
        assert_same_bits(theta, x, engine)
        # The same in one pass per probe: enter the first, swap through the others, leave the last.
        alpha, old = 0.0, 0
        for multiple, seed in terms:
            zo.ops.swap_probe_(theta, -alpha, old, multiple * grid, seed)
            alpha, old = multiple * grid, seed
        zo.ops.accumulate_probes_(theta, [], [], undo_alpha=-alpha, undo_seed=old)
        assert_same_bits(theta, x, engine)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([torch.float32, torch.float64]), sizes, offsets, alphas, seeds, alphas, seeds)
def test_swap_is_two_applies(dtype, numel, offset, alpha, seed, next_alpha, next_seed):
    x = make_values(numel, dtype)
    two = zo.ops.apply_probe_(x.clone(), alpha, seed, offset=offset)
    zo.ops.apply_probe_(two, next_alpha, next_seed, offset=offset)
    assert_same_bits(zo.ops.swap_probe_(x.clone(), alpha, seed, next_alpha, next_seed, offset=offset), two)


def test_swap_keeps_the_first_sum_of_16_bits_in_float32():
    """bfloat16: 256 + 1 is 256, but 256 + 1 + 1 is 258."""
    p = zo.ops.probe(300, 1, dtype=torch.bfloat16)
    for engine in engines():
        assert_same_bits(zo.ops.swap_probe_(256 * p, 1.0, 1, 1.0, 1), 258 * p, engine)


@pytest.fixture
def flush_denormal():
    """Switches torch's flushing of subnormals, which must be off when expected results are made."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor can't flush subnormals")
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flushing_subnormals_changes_nothing(dtype, flush_denormal):
    tiny = torch.finfo(dtype).tiny
    x = torch.linspace(-2, 2, 150001, dtype=torch.float64).mul(tiny).to(dtype)
    step, half_step = tiny / 8, tiny / 16  # here, not in the lambdas: Python's own arithmetic is flushed too
    ops = (
        lambda t: zo.ops.apply_probe_(t, step, 3, offset=EDGE - 1024),
        lambda t: zo.ops.apply_probe(t, step, 3, dtype=torch.float16),
        lambda t: zo.ops.swap_probe_(t, step, 3, half_step, 4),
        lambda t: zo.ops.accumulate_probes_(t, [2.0**-126, 0.25], [3, 4], decay=0.25),
        lambda t: zo.ops.accumulate_probes_(t, [], [], grid=2.0**-126, undo_alpha=tiny, undo_seed=3),
    )
    with zo.backend("reference"):
        expected = [op(x.clone()) for op in ops]
    for engine in engines(x.numel()):
        for op, wanted in zip(ops, expected, strict=True):
            actual = x.clone()
            flush_denormal(True)
            actual = op(actual)
            still_flushing = (torch.tensor([1e-40]) * torch.tensor([0.5])).item() == 0
            flush_denormal(False)
            assert_same_bits(actual, wanted, engine)
            assert still_flushing, "the op changed the caller's mode"


def test_flushing_subnormals_changes_no_sum_of_normals(flush_denormal):
    x = torch.full((70001,), 1e-40)
    rows = [1e-40, -3e-41], [1, 2]
    with zo.backend("reference"):
        expected = zo.ops.accumulate_probes_(x.clone(), *rows, distribution="normal")
    assert int((expected.abs() < 1e-38).sum()) > 0
    for engine in engines(x.numel()):
        flush_denormal(True)
        actual = zo.ops.accumulate_probes_(x.clone(), *rows, distribution="normal")
        flush_denormal(False)
        assert_same_bits(actual, expected, engine)


def test_flushing_subnormals_keeps_a_subnormal_undo(flush_denormal):
    """5e-310 counts as 0 while subnormals are flushed, wherever the caller's mode is in force."""
    undo = 5e-310
    for engine in engines():
        x = torch.zeros(300, dtype=torch.float64)
        flush_denormal(True)
        zo.ops.accumulate_probes_(x, [], [], undo_alpha=undo, undo_seed=3)
        flush_denormal(False)
        assert_same_bits(x, undo * zo.ops.probe(300, 3, dtype=torch.float64), engine)
