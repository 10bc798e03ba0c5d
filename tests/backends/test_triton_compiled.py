"""The machine code of every kernel the triton backend launches, compiled as a launch would, but for a GPU that need not
be there: no spills, registers, 16-byte accesses, no contraction. And that scalars do not make it compile again."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch

from tests.backends.ahead_of_time import Compiler
from tests.cases import DTYPES
from tests.device_code import Demands, Kernel, complaints, cuobjdump
from zo_kernels.backends import triton
from zo_kernels.backends.base import Update
from zo_kernels.backends.pieces import Pieces

pytestmark = [
    pytest.mark.skipif(cuobjdump() is None, reason="no Triton, or one without cuobjdump"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled for the interpreter"),
]

TILE = 4096
APPLY_THREADS, ACCUMULATE_THREADS, DRAWN_THREADS = 128, 32, 256


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Compiler(tmp_path_factory.mktemp("triton"), monkeypatch)


def accesses(dtype: torch.dtype, threads: int) -> int:
    """16-byte accesses with which a thread reads or writes its part of a tile."""
    return TILE // threads * dtype.itemsize // 16


def assert_fit(kernel: Kernel, demands: Demands) -> None:
    print(f"{kernel.registers} registers, {len(kernel.instructions)} instructions: {kernel}")
    assert not complaints(kernel, demands)


def rows(num_rows: int) -> tuple[np.ndarray, int, np.ndarray]:
    return np.ones(num_rows, np.int32), 3, np.arange(num_rows, dtype=np.int64)


def quick_if(quick: bool, *values: object):
    """A compilation takes seconds."""
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


# For the compute capability 9.0 all that is launched; for 8.0, whose code differs little, one of each kind.
MIXED = (torch.float32, torch.bfloat16)
PAIRS = [quick_if(pair == MIXED, 90, pair) for pair in itertools.product(DTYPES, DTYPES)] + [quick_if(False, 80, MIXED)]
each_pair = pytest.mark.parametrize(("capability", "pair"), PAIRS, ids=str)
each_dtype = pytest.mark.parametrize(
    ("capability", "dtype"),
    [*(quick_if(d == torch.float32, 90, d) for d in DTYPES), quick_if(False, 80, torch.float32)],
    ids=str,
)


@each_pair
def test_apply_probe(compiler, capability, pair):
    x, out = (torch.zeros(10, dtype=dtype) for dtype in pair)
    kernel = compiler(capability, "apply_probe", x, out, 0.5, 3, 0, "rademacher")
    assert_fit(kernel, Demands(128, *(accesses(dtype, APPLY_THREADS) for dtype in pair)))
    assert kernel.arch.startswith(f"sm_{capability}")


@each_pair
def test_apply_probes(compiler, capability, pair):
    """Each member is as aligned as out where a member is a multiple of 16 elements."""
    x, out = torch.zeros(32, dtype=pair[0]), torch.zeros(2, 2, 32, dtype=pair[1])
    alpha, seeds = torch.zeros(1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    kernel = compiler(capability, "apply_probes", x, out, alpha, seeds, 0)
    loads, stores = (accesses(dtype, APPLY_THREADS) for dtype in pair)
    assert_fit(kernel, Demands(208 if torch.float64 in pair else 168, loads, 2 * stores))


@each_dtype
def test_probe_and_swap_probe(compiler, capability, dtype):
    x = torch.zeros(10, dtype=dtype)
    width = accesses(dtype, APPLY_THREADS)
    probe = compiler(capability, "probe", x, 3, 0, "rademacher")
    assert_fit(probe, Demands(80, 0, width))
    assert not probe.count("LDG.*")
    swap = compiler(capability, "swap_probe", x, 0.5, 3, 0.5, 4, 0)  # with twice the threads
    assert_fit(swap, Demands(80, width // 2, width // 2))


@each_dtype
def test_accumulate_probes(compiler, capability, dtype):
    """168 registers leave 12 warps on a multiprocessor, 208 leave 9, 255 leave 8."""
    x = torch.zeros(10, dtype=dtype)
    kernel = compiler(capability, "accumulate_probes", x, *rows(3), 0, Update(), "rademacher")
    width = accesses(dtype, ACCUMULATE_THREADS)
    assert_fit(kernel, Demands(255 if dtype == torch.float64 else 208, width, width))
    # A thread has a block of 128 elements. Per seed and element a shift and a multiply-add, and the share of Philox.
    assert len(kernel.longest_loop()) < 3 * 128
    assert sum("IMAD" in text for text in kernel.longest_loop()) >= 128


def listed(dtype: torch.dtype, *lengths: int) -> Pieces:
    return Pieces([torch.zeros(n, dtype=dtype) for n in lengths], [4096 * k for k in range(len(lengths))])


# Beside the kernels for one tensor, a search and a branch: of those that take seconds to compile, a few.
few_pairs = pytest.mark.parametrize(("capability", "pair"), [p for p in PAIRS if p.values[1][1] == MIXED[1]], ids=str)


@few_pairs
def test_apply_probe_list(compiler, capability, pair):
    """One launch, in which tiles that are aligned have wide accesses."""
    x, out = (listed(dtype, 10, 3) for dtype in pair)
    kernel = compiler(capability, "apply_probe_list", x, out, 0.5, 3, "rademacher")
    assert_fit(kernel, Demands(128, *(accesses(dtype, APPLY_THREADS) for dtype in pair)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_swap_probe_list_and_accumulate_probes_list(compiler, dtype):
    width = accesses(dtype, APPLY_THREADS) // 2
    swap = compiler(90, "swap_probe_list", listed(dtype, 10, 3), 0.5, 3, 0.5, 4)
    assert_fit(swap, Demands(80, width, width))
    kernel = compiler(90, "accumulate_probes_list", listed(dtype, 10, 3), *rows(3), Update(), "rademacher")
    width = accesses(dtype, ACCUMULATE_THREADS)
    assert_fit(kernel, Demands(255 if dtype == torch.float64 else 208, width, width))
    assert len(kernel.longest_loop()) < 3 * 128


DRAWN = [
    quick_if(drawn == (90, "normal", torch.float32), *drawn)
    for drawn in (*itertools.product((90,), ("normal", "uniform", "sparse-4"), DTYPES), (80, "normal", torch.float32))
]
each_drawn = pytest.mark.parametrize(("capability", "distribution", "dtype"), DRAWN, ids=str)


def drawn_rows(distribution: str) -> tuple[np.ndarray, int, np.ndarray]:
    coeffs, shift, seeds = rows(3)
    return coeffs if distribution == "sparse-4" else coeffs.astype(np.float64), shift, seeds


@each_drawn
def test_drawn(compiler, capability, distribution, dtype):
    """A thread has 32 adjacent elements of a block with others, and moves at most four float32 or float64 ones at once.

    128 registers leave 16 warps on a multiprocessor.
    """
    x, width = torch.zeros(10, dtype=dtype), accesses(dtype, DRAWN_THREADS) if dtype.itemsize > 2 else 0
    apply = compiler(capability, "apply_probe", x, x, 0.5, 3, 0, distribution)
    assert_fit(apply, Demands(64, width, width))
    probe = compiler(capability, "probe", x, 3, 0, distribution)
    assert_fit(probe, Demands(64, 0, width))
    update = Update(rounding_seed=5 if dtype.itemsize == 2 else None)
    kernel = compiler(capability, "accumulate_probes", x, *drawn_rows(distribution), 0, update, distribution)
    assert_fit(kernel, Demands(128, width, width))


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["normal", "sparse-4"])
def test_drawn_list(compiler, distribution):
    x, width = listed(torch.float32, 10, 3), accesses(torch.float32, DRAWN_THREADS)
    apply = compiler(90, "apply_probe_list", x, x, 0.5, 3, distribution)
    assert_fit(apply, Demands(64, width, width))
    kernel = compiler(90, "accumulate_probes_list", x, *drawn_rows(distribution), Update(), distribution)
    assert_fit(kernel, Demands(128, width, width))


def test_sparsities_and_scalars_share_a_kernel(compiler):
    kernels: dict[str, set[int]] = {"apply": set(), "accumulate": set()}
    for i, distribution in enumerate(("sparse-2", "sparse-4", "sparse-65536")):
        x, update = torch.zeros((1, 16, 5000)[i]), Update(SCALARS[i], INTEGERS[i], 0.5, (0.0, 1.0, 0.25)[i])
        apply = compiler.compiled(90, "apply_probe", x, x, SCALARS[i], INTEGERS[i], 128 * i, distribution)
        table = rows((1, 0, 16)[i])
        accumulate = compiler.compiled(90, "accumulate_probes", x, *table, 128 * i, update, distribution)
        kernels["apply"].add(id(apply))
        kernels["accumulate"].add(id(accumulate))
    assert {name: len(found) for name, found in kernels.items()} == dict.fromkeys(kernels, 1)


@pytest.mark.slow
def test_addresses_that_are_not_aligned(compiler):
    """Views may start anywhere, and members of apply_probes do: an element at a time, the rest as before."""
    x, members = torch.zeros(50)[3:], torch.zeros(2, 2, 47)
    for kernel in (
        compiler(90, "apply_probe", x, x, 0.5, 3, 0, "rademacher"),
        compiler(90, "apply_probes", x, members, torch.zeros(1).double(), torch.arange(2), 0),
        compiler(90, "accumulate_probes", x, *rows(3), 0, Update(), "rademacher"),
    ):
        assert not kernel.count(r"LDG\.E\b.*\.128\b.*|STG\.E\b.*\.(64|128)\b.*")
        assert_fit(kernel, Demands(208))


SCALARS = (0.5, 1.0, 0.0, -0.0, 1e-50, -3e38)
INTEGERS = (0, 1, 16, -1, 2**31, 2**62, -(2**63))


def test_scalars_sizes_and_offsets_share_a_kernel(compiler):
    """Triton makes a variant for integers of 1, multiples of 16, 32 and 64 bits unless it is told not to."""
    kernels: dict[str, set[int]] = {name: set() for name in ("apply", "accumulate", "both", "list")}
    for i in range(len(INTEGERS)):
        alpha, seed = SCALARS[i % len(SCALARS)], INTEGERS[i]
        offset = 128 * (0, 1, 16, 2**31, 2**40, 2**55, 3)[i]
        x = torch.zeros((1, 16, 17, 4096, 5000, 64, 3)[i])
        update = Update(alpha, seed, alpha + 1, (0.0, 1.0, 2.0**-20)[i % 3])
        apply = compiler.compiled(90, "apply_probe", x, x, alpha, seed, offset, "rademacher")
        table = rows((1, 0, 16, 5)[i % 4])
        accumulate = compiler.compiled(90, "accumulate_probes", x, *table, offset, update, "rademacher")
        n = (1, 16, 3)[i % 3]
        x = torch.zeros(16 * (i + 1))
        arguments = torch.zeros(n, 2, len(x)), torch.zeros(()).double(), torch.arange(n + i)[i:], offset
        both = compiler.compiled(90, "apply_probes", x, *arguments)
        pieces = listed(torch.float32, *range(1, 17 * i + 2))
        moved = compiler.compiled(90, "apply_probe_list", pieces, pieces, alpha, seed, "rademacher")
        for name, kernel in (("apply", apply), ("accumulate", accumulate), ("both", both), ("list", moved)):
            kernels[name].add(id(kernel))
    assert {name: len(found) for name, found in kernels.items()} == dict.fromkeys(kernels, 1)


def test_a_spill_would_be_seen(compiler, monkeypatch):
    """The same kernel with fewer registers than it needs."""
    monkeypatch.setitem(triton._OPTIONS, "maxnreg", 32)
    x = torch.zeros(10)
    kernel = compiler(90, "apply_probe", x, x, 0.5, 3, 0, "rademacher")
    assert f"{kernel} spills registers" in complaints(kernel, Demands(255))


@pytest.mark.slow
def test_a_contraction_would_be_seen(compiler, monkeypatch):
    """The same kernel without the option that forbids it."""
    monkeypatch.setitem(triton._OPTIONS, "enable_fp_fusion", True)
    kernel = compiler(90, "accumulate_probes", torch.zeros(10), *rows(3), 0, Update(), "rademacher")
    assert complaints(kernel, Demands(255)) == [f"{kernel} fuses multiplications with additions"]
