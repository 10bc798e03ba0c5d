"""The cpu backend equals the reference bit for bit: every op, case, distribution, instruction set, 1 and 2 threads."""

import pytest
import torch

import zo_kernels as zo
from tests.cases import CASES, DTYPES, SEEDS, assert_parity, assert_same_bits, engines, make_values
from zo_kernels.distributions import is_exact_in_place

# Ordinary, negative, without effect, below float32's subnormals, subnormal, and so large that sums overflow.
ALPHAS = (0.5, -0.3, 0.0, -0.0, 1e-50, 1e-41, -3e38)

SPARSE = ("sparse-2", "sparse-4", "sparse-8", "sparse-64", "sparse-1024", "sparse-32768", "sparse-65536")

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def turn(case, values):
    """Another one of `values` for each case."""
    return values[CASES.index(case) % len(values)]


def distributions(case):
    """All but the sparse ones, and one of those; 7 and 30 sizes have no common factor."""
    return "rademacher", "normal", "uniform", turn(case, SPARSE)


@each_case
def test_probe(case):
    seed = turn(case, SEEDS)
    options = {"offset": case.offset, "dtype": case.dtype}
    for distribution in distributions(case):
        with zo.backend("reference"):
            expected = zo.ops.probe(case.numel, seed, distribution=distribution, **options)
        if is_exact_in_place(distribution):
            assert bool(((expected.abs() == 1) | ((expected == 0) & (distribution != "rademacher"))).all())
        with zo.backend("cpu"):
            for engine in engines(case.numel):
                actual = zo.ops.probe(case.numel, seed, distribution=distribution, **options)
                assert_same_bits(actual, expected, f"{distribution} {engine}")


@each_case
def test_apply_probe_(case):
    x = make_values(case.numel, case.dtype)
    options = {"alpha": turn(case, ALPHAS), "seed": turn(case, SEEDS), "offset": case.offset}
    for distribution in distributions(case):
        assert_parity(
            lambda t: zo.ops.apply_probe_(t, distribution=distribution, **options),  # noqa: B023
            x,
            lead=turn(case, range(4)),
            what=distribution,
        )


@each_case
def test_apply_probe_to_another_dtype(case):
    x = make_values(case.numel, case.dtype)
    options = {"alpha": turn(case, ALPHAS), "seed": turn(case, SEEDS), "offset": case.offset}
    for distribution in distributions(case):
        assert_parity(
            lambda t: zo.ops.apply_probe(x, out=t, distribution=distribution, **options),  # noqa: B023
            torch.zeros(case.numel, dtype=turn(case, DTYPES[1:] + DTYPES[:1])),
            lead=turn(case, range(4)),
            what=distribution,
        )


@each_case
def test_swap_probe_(case):
    x = make_values(case.numel, case.dtype)
    leave, enter = turn(case, ALPHAS), turn(case, ALPHAS[1:])
    old, new = turn(case, SEEDS), turn(case, SEEDS[1:])
    assert_parity(
        lambda t: zo.ops.swap_probe_(t, leave, old, enter, new, offset=case.offset), x, lead=turn(case, range(4))
    )


@each_case
def test_accumulate_probes_(case):
    x = make_values(case.numel, case.dtype)
    num_seeds = turn(case, (0, 1, 3, 4, 7, 13))
    coeffs = make_values(num_seeds, torch.float64).nan_to_num(0.25, 0.5, -0.5).clamp(-1e30, 1e30)
    seeds = [SEEDS[i % len(SEEDS)] for i in range(num_seeds)]
    options = {
        "offset": case.offset,
        "decay": turn(case, (1.0, 0.99, 0.0, -2.0)),
        "grid": turn(case, (0.0, 2.0**-20, 0.25, 2.0**-126, 2.0**100)),
        "undo_alpha": turn(case, (0.0, -0.125, 1e-50)),
        "undo_seed": turn(case, SEEDS),
        "rounding_seed": turn(case, (None, *SEEDS)) if case.dtype.itemsize == 2 else None,
    }
    for distribution in distributions(case):
        assert_parity(
            lambda t: zo.ops.accumulate_probes_(t, coeffs, seeds, distribution=distribution, **options),  # noqa: B023
            x,
            lead=turn(case, range(4)),
            what=f"{distribution} {options}",
        )
