"""The cpu backend equals the reference bit for bit for every distribution: case, instruction set, 1 and 2 threads."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zo_kernels as zo
from tests.cases import CASES, DISTRIBUTIONS, DTYPES, SEEDS, assert_parity, assert_same_bits, engines, make_values
from tests.test_philox import blocks, seeds
from zo_kernels import _C

ALPHAS = (0.5, -0.3, 0.0, -0.0, 1e-50, 1e-41, -3e38)

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def turn(case, values):
    """Another one of `values` for each case."""
    return values[CASES.index(case) % len(values)]


def distributions(case):
    """Both with numbers of all sizes, and a sparse one; 7 and 30 sizes have no common factor."""
    sparse = ("sparse-2", "sparse-4", "sparse-8", "sparse-64", "sparse-1024", "sparse-32768", "sparse-65536")
    return "normal", "uniform", turn(case, sparse)


@each_case
def test_probe(case):
    seed = turn(case, SEEDS)
    options = {"offset": case.offset, "dtype": case.dtype}
    for distribution in distributions(case):
        with zo.backend("reference"):
            expected = zo.ops.probe(case.numel, seed, distribution=distribution, **options)
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
def test_accumulate_probes_(case):
    x = make_values(case.numel, case.dtype)
    num_seeds = turn(case, (0, 1, 3, 4, 7))
    coeffs = make_values(num_seeds, torch.float64).nan_to_num(0.25, 0.5, -0.5).clamp(-1e30, 1e30)
    rows = [SEEDS[i % len(SEEDS)] for i in range(num_seeds)]
    options = {
        "decay": turn(case, (1.0, 0.99, 0.0, -2.0)),
        "grid": turn(case, (0.0, 2.0**-20, 0.25, 2.0**-126, 2.0**100)),
        "undo_alpha": turn(case, (0.0, -0.125, 1e-50)),
        "undo_seed": turn(case, SEEDS),
        "offset": case.offset,
    }
    for distribution in distributions(case):
        assert_parity(
            lambda t: zo.ops.accumulate_probes_(t, coeffs, rows, distribution=distribution, **options),  # noqa: B023
            x,
            lead=turn(case, range(4)),
            what=f"{distribution} {options}",
        )


@settings(max_examples=40)
@given(
    distribution=st.sampled_from(DISTRIBUTIONS),
    dtype=st.sampled_from(DTYPES),
    numel=st.integers(0, 5000),
    block=blocks,
    seed=seeds,
    alpha=st.floats(-1e30, 1e30),
    lead=st.integers(0, 7),
)
def test_anywhere(distribution, dtype, numel, block, seed, alpha, lead):
    offset = min(128 * block, 2**62)
    x = make_values(numel, dtype)
    assert_parity(
        lambda t: zo.ops.apply_probe_(t, alpha, seed, offset=offset, distribution=distribution), x, lead, distribution
    )
    assert_parity(
        lambda t: zo.ops.accumulate_probes_(
            t, [alpha, 0.1], [seed, 5], offset=offset, undo_alpha=0.5, undo_seed=seed, distribution=distribution
        ),
        x,
        lead,
        distribution,
    )


def test_flushing_subnormals_is_not_seen_by_the_kernels():
    x = torch.full((70001,), 1e-40)
    rows = [1e-40, -3e-41], [1, 2]
    expected = zo.ops.accumulate_probes_(x.clone(), *rows, distribution="normal")
    assert int((expected.abs() < 1e-38).sum()) > 0
    try:
        torch.set_flush_denormal(True)
        actual = zo.ops.accumulate_probes_(x.clone(), *rows, distribution="normal")
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(actual, expected)


def digest():
    """Of probes of all distributions and of a sum of them."""
    parts = []
    for distribution in DISTRIBUTIONS:
        parts.append(zo.ops.probe(70000, -3, offset=2**39 - 1280, distribution=distribution))
        parts.append(zo.ops.accumulate_probes_(torch.zeros(5000), [0.1, -0.3], [1, 2], distribution=distribution))
    return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("isa", _C.supported_isas())
def test_processes_on_other_instruction_sets_draw_the_same(isa):
    code = "from tests.ops.test_distributions_parity import digest, zo, _C; print(_C.active_isa(), digest())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ZO_KERNELS_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    with zo.backend("reference"):
        assert run.stdout == f"{isa} {digest()}\n"
