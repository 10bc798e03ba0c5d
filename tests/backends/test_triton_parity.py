"""The triton backend equals the reference bit for bit: in Triton's interpreter, and compiled where there is a GPU.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process of its own: this file as a
program does all the checks and prints what came of each.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import zo_kernels as zo
from tests.cases import (
    DTYPES,
    EDGE,
    PLACED_CASES,
    SEEDS,
    SHARED_CASES,
    SMALL_CASES,
    Guarded,
    assert_same_bits,
    make_values,
)
from tests.ops.test_parity import ALPHAS, turn
from zo_kernels.backends import backend_for
from zo_kernels.backends import triton as triton_backend

TILE = 4096

# An interpreted tile takes milliseconds: sizes in turn over the dtypes, sizes around a tile, all places, two long ones.
SHORT, LONGER = ([case for case in SMALL_CASES if (case.numel < TILE - 1) == below] for below in (True, False))
CASES = SHORT[::4] + LONGER[::2] + PLACED_CASES + SHARED_CASES[1::4]

some = settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
dtypes = st.sampled_from(DTYPES)
numels = st.integers(0, 3 * TILE // 2)
offsets = st.integers(0, 2**56 - 64).map(lambda block: 128 * block)
seeds_64 = st.integers(-(2**63), 2**64 - 1)
scalars = st.floats(-3e38, 3e38)


def assert_parity(op: Callable[[Tensor], Tensor], x: Tensor, device: str, what: object, lead: int = 3) -> Tensor:
    """`op` makes the same of x with the reference on the CPU and with triton on `device`. Returns what it makes."""
    with zo.backend("reference"):
        expected = op(x.clone())
    with torch.device(device):
        guarded = Guarded(x, lead)
    with zo.backend("triton"):
        actual = op(guarded.tensor)
    assert_same_bits(actual.cpu(), expected, str(what))
    guarded.assert_surroundings_untouched(str(what))
    return expected


def check_probe(device: str) -> None:
    for case in CASES:
        seed = turn(case, SEEDS)

        def make(x: Tensor, case=case, seed=seed) -> Tensor:
            return zo.ops.probe(case.numel, seed, offset=case.offset, dtype=case.dtype, device=x.device)

        assert_parity(make, torch.zeros(0), device, case)


def check_apply_probe_(device: str) -> None:
    for case in CASES:
        alpha, seed = turn(case, ALPHAS), turn(case, SEEDS)

        def move(x: Tensor, case=case, alpha=alpha, seed=seed) -> Tensor:
            return zo.ops.apply_probe_(x, alpha, seed, offset=case.offset)

        assert_parity(move, make_values(case.numel, case.dtype), device, (case, alpha), turn(case, range(4)))


def check_apply_probe_to_every_dtype(device: str) -> None:
    for x_dtype in DTYPES:
        x = make_values(1500, x_dtype)
        for out_dtype in DTYPES:
            for i, alpha in enumerate(ALPHAS):
                seed = (-7, 2**31, 2**32 - 1)[i % 3]
                expected = torch.empty(1500, dtype=out_dtype)
                with zo.backend("reference"):
                    zo.ops.apply_probe(x, alpha, seed, offset=EDGE - 1024, out=expected)
                with torch.device(device):
                    guarded = Guarded(torch.full_like(expected, math.nan))
                with zo.backend("triton"):
                    zo.ops.apply_probe(x.to(device), alpha, seed, offset=EDGE - 1024, out=guarded.tensor)
                what = f"{x_dtype} to {out_dtype}, {alpha}"
                assert_same_bits(guarded.tensor.cpu(), expected, what)
                guarded.assert_surroundings_untouched(what)


def check_swap_probe_(device: str) -> None:
    for case in CASES:
        leave, enter = turn(case, ALPHAS), turn(case, ALPHAS[1:])
        old, new = turn(case, SEEDS), turn(case, SEEDS[1:])

        def move(x: Tensor, case=case, arguments=(leave, old, enter, new)) -> Tensor:
            return zo.ops.swap_probe_(x, *arguments, offset=case.offset)

        assert_parity(move, make_values(case.numel, case.dtype), device, (case, leave, enter), turn(case, range(4)))


def check_accumulate_probes_(device: str) -> None:
    for case in CASES:
        num_seeds = turn(case, (0, 1, 3, 4, 7, 13))
        coeffs = make_values(num_seeds, torch.float64).nan_to_num(0.25, 0.5, -0.5).clamp(-1e30, 1e30)
        seeds = [SEEDS[i % len(SEEDS)] for i in range(num_seeds)]
        options = {
            "decay": turn(case, (1.0, 0.99, 0.0, -2.0)),
            "grid": turn(case, (0.0, 2.0**-20, 0.25, 2.0**-126, 2.0**100)),
            "undo_alpha": turn(case, (0.0, -0.125, 1e-50)),
            "undo_seed": turn(case, SEEDS),
        }

        def add(x: Tensor, case=case, rows=(coeffs, seeds), options=options) -> Tensor:
            return zo.ops.accumulate_probes_(x, *rows, offset=case.offset, **options)

        assert_parity(add, make_values(case.numel, case.dtype), device, (case, options), turn(case, range(4)))


def check_sums_up_to_the_limit(device: str) -> None:
    """In float64 a sum of quantised coefficients shows every bit, at both ends of int32 too."""
    generator = np.random.default_rng(0)
    tables = [[2.0**31 - 1], [2.0**30, 1 - 2.0**30], [0.0, 0.0], list(generator.normal(size=50))]
    for coeffs in tables:
        seeds = generator.integers(-(2**63), 2**63, len(coeffs))

        def add(x: Tensor, rows=(coeffs, seeds)) -> Tensor:
            return zo.ops.accumulate_probes_(x, *rows, offset=EDGE - 2048)

        sums = assert_parity(add, torch.zeros(TILE + 5, dtype=torch.float64), device, coeffs)
        assert len(sums.unique()) >= min(2 ** np.count_nonzero(coeffs), 1000)


def check_rounding_to_the_grid(device: str) -> None:
    """Ties, both zeros, and numbers around the one from which all are integers."""
    for dtype, first in ((torch.float32, 2.0**23), (torch.float64, 2.0**52), (torch.bfloat16, 2.0**7)):
        ties = torch.arange(-20, 20, dtype=torch.float64) / 4
        large = torch.cat([scale * first + ties for scale in (0.25, 0.5, 1.0, 2.0)])
        x = torch.cat([ties, large, -large, make_values(200, dtype).double()]).to(dtype)
        for grid in (1.0, 2.0**-20, 2.0**20):

            def round_to_grid(x: Tensor, grid=grid) -> Tensor:
                return zo.ops.accumulate_probes_(x, [], [], grid=grid)

            rounded = assert_parity(round_to_grid, x * grid, device, (dtype, grid))
            assert not torch.equal(rounded, x * grid)


def check_apply_probes(device: str) -> None:
    for case in CASES[::3]:
        for alpha in (turn(case, ALPHAS), torch.tensor(turn(case, ALPHAS[1:]), dtype=torch.float64)):
            seeds, dtype = SEEDS[: turn(case, (0, 1, 3, 2))], turn(case, DTYPES[1:])

            def both(x: Tensor, case=case, alpha=alpha, seeds=seeds, dtype=dtype) -> Tensor:
                return zo.ops.apply_probes(x, alpha, seeds, offset=case.offset, dtype=dtype)

            assert_parity(both, make_values(case.numel, case.dtype), device, (case, alpha), turn(case, range(4)))


def check_apply_probes_with_several_seeds_a_program(device: str) -> None:
    """Also numbers of elements of which the members are as aligned as the first, and others."""
    enough, triton_backend._ENOUGH_PROGRAMS = triton_backend._ENOUGH_PROGRAMS, 4
    try:
        for shape in ((16,), (20,), (TILE,), (3, TILE // 2), (TILE + 16,), (5, 7, 11)):
            seeds = torch.tensor([3, -4, 2**62, 5, -(2**63), 0, 7])[: len(shape) + 4]
            out = torch.full((len(seeds), 2, *shape), math.nan)
            expected = out.clone()
            x = make_values(math.prod(shape), torch.float32).view(shape)
            with zo.backend("reference"):
                zo.ops.apply_probes(x, 0.25, seeds, offset=128, out=expected)
            with torch.device(device):
                guarded = Guarded(out.flatten(), lead=4)
            alpha = torch.tensor([0.25], dtype=torch.float64, device=device)
            with zo.backend("triton"):
                zo.ops.apply_probes(x.to(device), alpha, seeds.to(device), offset=128, out=guarded.tensor.view_as(out))
            assert_same_bits(guarded.tensor.cpu().view_as(out), expected, str(shape))
            guarded.assert_surroundings_untouched(str(shape))
    finally:
        triton_backend._ENOUGH_PROGRAMS = enough


def check_any_swap(device: str) -> None:
    @some
    @given(dtypes, numels, offsets, scalars, seeds_64, scalars, seeds_64)
    def check(dtype, numel, offset, alpha, seed, next_alpha, next_seed):
        def move(x: Tensor) -> Tensor:
            return zo.ops.swap_probe_(x, alpha, seed, next_alpha, next_seed, offset=offset)

        assert_parity(move, make_values(numel, dtype), device, "swap")

    check()


def check_any_update(device: str) -> None:
    rows = st.lists(st.tuples(st.floats(-1e6, 1e6), seeds_64), max_size=40)
    grids = st.just(0.0) | st.integers(-126, 126).map(lambda k: 2.0**k)

    @some
    @given(dtypes, numels, offsets, rows, scalars, grids, scalars, seeds_64)
    def check(dtype, numel, offset, rows, decay, grid, undo_alpha, undo_seed):
        coeffs, seeds = [c for c, _ in rows], [s for _, s in rows]
        options = {"decay": decay, "grid": grid, "undo_alpha": undo_alpha, "undo_seed": undo_seed}

        def add(x: Tensor) -> Tensor:
            return zo.ops.accumulate_probes_(x, coeffs, seeds, offset=offset, **options)

        assert_parity(add, make_values(numel, dtype), device, options)

    check()


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def main() -> None:
    """Prints, as JSON, what went wrong in each check, and which backend computes on the CPU if none is asked for."""
    found = {"choice": backend_for("cpu").name}
    for name, check in CHECKS.items():
        try:
            check("cpu")
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(f"the interpreter of Triton {version} does not work with NumPy {np.__version__}")
    places = [str(Path(zo.__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    process = subprocess.run([sys.executable, __file__], env=variables, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name, interpreted):
    assert not interpreted[name], interpreted[name]


def test_the_interpreter_only_computes_if_asked_to(interpreted):
    assert interpreted["choice"] == "cpu"


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_gpu(name):
    CHECKS[name]("cuda")


@needs_gpu
def test_a_cuda_graph_replays_with_other_seeds():
    x, out = torch.randn(5000, device="cuda"), torch.empty(2, 2, 5000, device="cuda")
    alpha, seeds = torch.tensor(0.5, dtype=torch.float64, device="cuda"), torch.tensor([3, 4], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with zo.backend("triton"):
        zo.ops.apply_probes(x, alpha, seeds, out=out)  # compiles
        with torch.cuda.graph(graph):
            zo.ops.apply_probes(x, alpha, seeds, out=out)
    seeds.copy_(torch.tensor([-5, 2**62]))
    alpha.fill_(0.25)
    graph.replay()
    with zo.backend("reference"):
        expected = zo.ops.apply_probes(x.cpu(), 0.25, [-5, 2**62])
    assert_same_bits(out.cpu(), expected)


if __name__ == "__main__":
    main()
