"""What every op of a backend must do, bit for bit: checks over the shared cases, for a backend on a device.

test_triton_parity.py runs them in Triton's interpreter, tests/gpu/test_ops.py on a GPU.
"""

# ruff: noqa: B023, E731 - an op is a lambda that is called before its loop goes on

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import zo_kernels as zo
from tests.cases import (
    CASES,
    DISTRIBUTIONS,
    DTYPES,
    EDGE,
    FEW_CASES,
    PLACED_CASES,
    SEEDS,
    SHARED_CASES,
    SMALL_CASES,
    Case,
    Guarded,
    assert_same_bits,
    make_values,
)
from tests.ops.test_parity import ALPHAS, turn
from zo_kernels.backends import triton as triton_backend

TILE = 4096

# An interpreted tile takes milliseconds: sizes in turn over the dtypes, sizes around a tile, all places, two long ones.
SHORT, LONGER = ([case for case in SMALL_CASES if (case.numel < TILE - 1) == below] for below in (True, False))
SOME_CASES = SHORT[::4] + LONGER[::2] + PLACED_CASES + SHARED_CASES[1::4]

some = settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
dtypes = st.sampled_from(DTYPES)
numels = st.integers(0, 3 * TILE // 2)
offsets = st.integers(0, 2**56 - 64).map(lambda block: 128 * block)
seeds_64 = st.integers(-(2**63), 2**64 - 1)
scalars = st.floats(-3e38, 3e38)


@dataclass(frozen=True)
class Place:
    """Where `backend` computes, and the backend that says on the CPU what is right.

    thorough: every case, aligned and not, with many rows too; otherwise what takes an interpreter seconds.
    """

    backend: str
    device: str
    right: str = "reference"
    thorough: bool = False

    def cases(self, every: int = 1) -> Sequence[Case]:
        return CASES if self.thorough else SOME_CASES[::every]

    def leads(self, lead: int) -> tuple[int, ...]:
        """Elements between an aligned address and a tensor."""
        return (0, 1 + lead % 3) if self.thorough else (lead,)

    def guarded(self, x: Tensor, lead: int) -> Guarded:
        with torch.device(self.device):
            return Guarded(x, lead)


def assert_parity(op: Callable[[Tensor], Tensor], x: Tensor, place: Place, what: object, lead: int = 3) -> Tensor:
    """`op` makes of x what is right: in place, or a new tensor. Returns what it makes."""
    with zo.backend(place.right):
        expected = op(x.clone())
    for ahead in place.leads(lead):
        guarded = place.guarded(x, ahead)
        with zo.backend(place.backend):
            actual = op(guarded.tensor)
        assert_same_bits(actual.cpu(), expected, f"{what}, lead {ahead}")
        guarded.assert_surroundings_untouched(f"{what}, lead {ahead}")
    return expected


def assert_fills(
    op: Callable[[Tensor, Tensor], object], x: Tensor, out: Tensor, place: Place, what: object, lead: int = 3
) -> None:
    """`op(x, out)` makes of out what is right, and leaves x as it was."""
    expected = out.fill_(math.nan).clone()
    with zo.backend(place.right):
        op(x, expected)
    for ahead in place.leads(lead):
        source, filled = place.guarded(x, ahead), place.guarded(out.flatten(), ahead)
        with zo.backend(place.backend):
            op(source.tensor, filled.tensor.view_as(out))
        assert_same_bits(filled.tensor.cpu().view_as(out), expected, f"{what}, lead {ahead}")
        assert_same_bits(source.tensor.cpu(), x, f"{what}, lead {ahead}: the source")
        for guarded in (source, filled):
            guarded.assert_surroundings_untouched(f"{what}, lead {ahead}")


def check_probe(place: Place) -> None:
    for case in place.cases():
        options = {"offset": case.offset, "dtype": case.dtype}
        for seed in SEEDS if place.thorough else (turn(case, SEEDS),):
            make = lambda x: zo.ops.probe(case.numel, seed, device=x.device, **options)
            assert_parity(make, torch.zeros(0), place, (case, seed))


def check_apply_probe_(place: Place) -> None:
    for case in place.cases():
        alpha, seed = turn(case, ALPHAS), turn(case, SEEDS)
        move = lambda x: zo.ops.apply_probe_(x, alpha, seed, offset=case.offset)
        assert_parity(move, make_values(case.numel, case.dtype), place, (case, alpha), turn(case, range(4)))


def check_apply_probe(place: Place) -> None:
    for case in place.cases(every=8):
        alpha, seed = turn(case, ALPHAS), turn(case, SEEDS)
        move = lambda x, out: zo.ops.apply_probe(x, alpha, seed, offset=case.offset, out=out)
        for dtype in DTYPES:
            x, out = make_values(case.numel, case.dtype), torch.empty(case.numel, dtype=dtype)
            assert_fills(move, x, out, place, (case, alpha, dtype), turn(case, range(4)))


def check_apply_probe_to_every_dtype(place: Place) -> None:
    for x_dtype in DTYPES:
        for out_dtype in DTYPES:
            for i, alpha in enumerate(ALPHAS):
                seed = (-7, 2**31, 2**32 - 1)[i % 3]
                move = lambda x, out: zo.ops.apply_probe(x, alpha, seed, offset=EDGE - 1024, out=out)
                x, out = make_values(1500, x_dtype), torch.empty(1500, dtype=out_dtype)
                assert_fills(move, x, out, place, (x_dtype, out_dtype, alpha))


def check_swap_probe_(place: Place) -> None:
    for case in place.cases():
        leave, enter = turn(case, ALPHAS), turn(case, ALPHAS[1:])
        old, new = turn(case, SEEDS), turn(case, SEEDS[1:])
        move = lambda x: zo.ops.swap_probe_(x, leave, old, enter, new, offset=case.offset)
        assert_parity(move, make_values(case.numel, case.dtype), place, (case, leave, enter), turn(case, range(4)))


def check_accumulate_probes_(place: Place) -> None:
    for case in place.cases():
        many = place.thorough and case in FEW_CASES + SHARED_CASES
        options = {
            "decay": turn(case, (1.0, 0.99, 0.0, -2.0)),
            "grid": turn(case, (0.0, 2.0**-20, 0.25, 2.0**-126, 2.0**100)),
            "undo_alpha": turn(case, (0.0, -0.125, 1e-50)),
            "undo_seed": turn(case, SEEDS),
            "rounding_seed": turn(case, (None, *SEEDS)) if case.dtype.itemsize == 2 else None,
        }
        for count in (turn(case, (0, 1, 3, 4, 7, 13)), *([turn(case, (96, 97, 512, 600))] if many else [])):
            coeffs = make_values(count, torch.float64).nan_to_num(0.25, 0.5, -0.5).clamp(-1e30, 1e30)
            seeds = [(SEEDS[i % len(SEEDS)] + i // len(SEEDS)) % 2**64 for i in range(count)]
            add = lambda x: zo.ops.accumulate_probes_(x, coeffs, seeds, offset=case.offset, **options)
            x = make_values(case.numel, case.dtype)
            assert_parity(add, x, place, (case, count, options), turn(case, range(4)))


def check_sums_up_to_the_limit(place: Place) -> None:
    """In float64 a sum of quantised coefficients shows every bit, at both ends of int32 too."""
    generator = np.random.default_rng(0)
    for coeffs in ([2.0**31 - 1], [2.0**30, 1 - 2.0**30], [0.0, 0.0], list(generator.normal(size=50))):
        seeds = generator.integers(-(2**63), 2**63, len(coeffs))
        add = lambda x: zo.ops.accumulate_probes_(x, coeffs, seeds, offset=EDGE - 2048)
        sums = assert_parity(add, torch.zeros(TILE + 5, dtype=torch.float64), place, coeffs)
        assert len(sums.unique()) >= min(2 ** np.count_nonzero(coeffs), 1000)


def check_rounding_to_the_grid(place: Place) -> None:
    """Ties, both zeros, and numbers around the one from which all are integers."""
    for dtype, first in ((torch.float32, 2.0**23), (torch.float64, 2.0**52), (torch.bfloat16, 2.0**7)):
        ties = torch.arange(-20, 20, dtype=torch.float64) / 4
        large = torch.cat([scale * first + ties for scale in (0.25, 0.5, 1.0, 2.0)])
        x = torch.cat([ties, large, -large, make_values(200, dtype).double()]).to(dtype)
        for grid in (1.0, 2.0**-20, 2.0**20):
            round_to_grid = lambda x: zo.ops.accumulate_probes_(x, [], [], grid=grid)
            rounded = assert_parity(round_to_grid, x * grid, place, (dtype, grid))
            assert not torch.equal(rounded, x * grid)


def check_apply_probes(place: Place) -> None:
    """Seeds are a tensor on the host or beside x; alpha is a number, or a tensor beside them."""
    signed = torch.tensor([seed - 2**64 * (seed >= 2**63) for seed in SEEDS])
    for case in place.cases(every=3):
        seeds, dtype = signed[: turn(case, (2, 0, 5, 1, 3))], turn(case, DTYPES)
        for alpha in (turn(case, ALPHAS), torch.tensor(turn(case, ALPHAS[1:]), dtype=torch.float64)):
            beside = isinstance(alpha, Tensor) and turn(case, (False, True))
            rows = lambda x: (alpha.to(x.device), seeds.to(x.device)) if beside else (alpha, seeds)
            both = lambda x, out: zo.ops.apply_probes(x, *rows(x), offset=case.offset, out=out)
            x, out = make_values(case.numel, case.dtype), torch.empty(len(seeds), 2, case.numel, dtype=dtype)
            assert_fills(both, x, out, place, (case, alpha), turn(case, range(4)))


def check_apply_probes_with_several_seeds_a_program(place: Place) -> None:
    """Also numbers of elements of which the members are as aligned as the first, and others."""
    enough, triton_backend._ENOUGH_PROGRAMS = triton_backend._ENOUGH_PROGRAMS, 4
    alpha = torch.tensor([0.25], dtype=torch.float64)
    try:
        for shape in ((16,), (20,), (TILE,), (3, TILE // 2), (TILE + 16,), (5, 7, 11)):
            seeds = torch.tensor([3, -4, 2**62, 5, -(2**63), 0, 7])[: len(shape) + 4]
            rows = lambda x: (alpha.to(x.device), seeds.to(x.device))
            both = lambda x, out: zo.ops.apply_probes(x.view(shape), *rows(x), offset=128, out=out)
            x = make_values(math.prod(shape), torch.float32)
            assert_fills(both, x, torch.empty(len(seeds), 2, *shape), place, shape, lead=4)
    finally:
        triton_backend._ENOUGH_PROGRAMS = enough


def check_distributions(place: Place) -> None:
    """All ops that take a distribution. In the interpreter a case has one of them, and a long one none."""
    for at, case in enumerate(place.cases(every=4)):
        if not place.thorough and case.numel > 2 * TILE:
            continue
        for k, distribution in enumerate(DISTRIBUTIONS if place.thorough else DISTRIBUTIONS[at % 5 :][:1]):
            where = {"offset": case.offset, "distribution": distribution}
            alpha, seed, lead = turn(case, ALPHAS), turn(case, SEEDS[k:]), turn(case, range(4))
            x, out = make_values(case.numel, case.dtype), torch.empty(case.numel, dtype=turn(case, DTYPES))
            make = lambda x: zo.ops.probe(case.numel, seed, device=x.device, dtype=case.dtype, **where)
            assert_parity(make, torch.zeros(0), place, (case, seed, where))
            move = lambda x, out: zo.ops.apply_probe(x, alpha, seed, out=out, **where)
            assert_fills(move, x, out, place, (case, alpha, seed, where), lead)
            options = {
                "decay": turn(case, (1.0, 0.99)),
                "grid": turn(case, (0.0, 2.0**-20, 0.0)),
                "undo_alpha": turn(case, (0.0, -0.125, 1e-50)),
                "undo_seed": seed,
                "rounding_seed": turn(case, (None, *SEEDS)) if case.dtype.itemsize == 2 else None,
            }
            rows = [0.5, -1e-3, 7.25, -1e-44][: turn(case, (0, 1, 3, 4))], [3, -1, 2**63, 5][: turn(case, (0, 1, 3, 4))]
            add = lambda x: zo.ops.accumulate_probes_(x, *rows, **where, **options)
            assert_parity(add, x, place, (case, where, rows, options), lead)


def check_sums_of_drawn_elements(place: Place) -> None:
    """In float64 a sum shows every bit: the order of the rows, and no contraction. A tiny one rounds to -0."""
    generator = np.random.default_rng(0)
    coeffs, seeds = generator.normal(size=50), generator.integers(-(2**63), 2**63, 50)
    for distribution in DISTRIBUTIONS[:2]:
        add = lambda x: zo.ops.accumulate_probes_(x, coeffs, seeds, offset=EDGE - 2048, distribution=distribution)
        assert_parity(add, torch.zeros(TILE + 5, dtype=torch.float64), place, distribution)
        tiny = lambda x: zo.ops.accumulate_probes_(x, [1e-45], [3], distribution=distribution)
        negative = assert_parity(tiny, torch.full((300,), -0.0), place, distribution).signbit()
        assert 0 < int(negative.sum()) < len(negative)


def check_any_swap(place: Place) -> None:
    @some
    @given(dtypes, numels, offsets, scalars, seeds_64, scalars, seeds_64)
    def check(dtype, numel, offset, alpha, seed, next_alpha, next_seed):
        move = lambda x: zo.ops.swap_probe_(x, alpha, seed, next_alpha, next_seed, offset=offset)
        assert_parity(move, make_values(numel, dtype), place, "swap")

    check()


def check_any_update(place: Place) -> None:
    rows = st.lists(st.tuples(st.floats(-1e6, 1e6), seeds_64), max_size=40)
    grids = st.just(0.0) | st.integers(-126, 126).map(lambda k: 2.0**k)

    @some
    @given(dtypes, numels, offsets, rows, scalars, grids, scalars, seeds_64, st.none() | seeds_64)
    def check(dtype, numel, offset, rows, decay, grid, undo_alpha, undo_seed, rounding_seed):
        options = {"decay": decay, "grid": grid, "undo_alpha": undo_alpha, "undo_seed": undo_seed}
        options["rounding_seed"] = rounding_seed if dtype.itemsize == 2 else None
        coeffs, seeds = [c for c, _ in rows], [s for _, s in rows]
        add = lambda x: zo.ops.accumulate_probes_(x, coeffs, seeds, offset=offset, **options)
        assert_parity(add, make_values(numel, dtype), place, options)

    check()


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
