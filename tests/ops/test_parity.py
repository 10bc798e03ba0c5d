"""The cpu backend equals the reference bit for bit: every op, every case, every instruction set, 1 and 2 threads."""

import pytest
import torch

import zo_kernels as zo
from tests.cases import CASES, SEEDS, assert_parity, assert_same_bits, engines, make_values

# Ordinary, negative, without effect, below float32's subnormals, subnormal, and so large that sums overflow.
ALPHAS = (0.5, -0.3, 0.0, -0.0, 1e-50, 1e-41, -3e38)

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def turn(case, values):
    """Another one of `values` for each case."""
    return values[CASES.index(case) % len(values)]


@each_case
def test_probe(case):
    seed = turn(case, SEEDS)
    with zo.backend("reference"):
        expected = zo.ops.probe(case.numel, seed, offset=case.offset, dtype=case.dtype)
    assert bool((expected.abs() == 1).all())
    with zo.backend("cpu"):
        for engine in engines(case.numel):
            actual = zo.ops.probe(case.numel, seed, offset=case.offset, dtype=case.dtype)
            assert_same_bits(actual, expected, engine)


@each_case
def test_apply_probe_(case):
    x = make_values(case.numel, case.dtype)
    alpha, seed = turn(case, ALPHAS), turn(case, SEEDS)
    assert_parity(lambda t: zo.ops.apply_probe_(t, alpha, seed, offset=case.offset), x, lead=turn(case, range(4)))


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
        "decay": turn(case, (1.0, 0.99, 0.0, -2.0)),
        "grid": turn(case, (0.0, 2.0**-20, 0.25, 2.0**-126, 2.0**100)),
        "undo_alpha": turn(case, (0.0, -0.125, 1e-50)),
        "undo_seed": turn(case, SEEDS),
    }
    assert_parity(
        lambda t: zo.ops.accumulate_probes_(t, coeffs, seeds, offset=case.offset, **options),
        x,
        lead=turn(case, range(4)),
        what=str(options),
    )
