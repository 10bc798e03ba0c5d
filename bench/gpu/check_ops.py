"""The ops on the device, bit for bit those of the CPU: every case of the shared list, aligned and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import zo_kernels as zo
from tests.cases import CASES, DTYPES, FEW_CASES, SEEDS, SHARED_CASES, Case, Guarded, assert_same_bits, make_values

ALPHAS = (0.5, -0.3, 0.0, -0.0, 1e-50, 1e-41, -3e38)
"""Ordinary, negative, without effect, below float32's subnormals, subnormal, and so large that sums overflow."""

_DECAYS = (1.0, 0.99, 0.0, -2.0)
_GRIDS = (0.0, 2.0**-20, 0.25, 2.0**-126, 2.0**100)
_UNDONE = (0.0, -0.125, 1e-50)
_ROWS = (0, 1, 3, 4, 7, 13)
_MANY_ROWS = (96, 97, 512, 600)

_CASES = {"cuda": CASES, "cpu": FEW_CASES}

_T = TypeVar("_T")


class Setting(NamedTuple):
    """A case, which one it is, and where it is computed."""

    case: Case
    number: int
    device: str
    lead: int
    """Elements between an aligned address and the tensors."""

    def turn(self, values: Sequence[_T]) -> _T:
        """Another one for each case."""
        return values[self.number % len(values)]

    def place(self, x: Tensor) -> Guarded:
        with torch.device(self.device):
            return Guarded(x, self.lead)

    def values(self) -> Guarded:
        return self.place(make_values(self.case.numel, self.case.dtype))

    def poisoned(self, shape: Sequence[int], dtype: torch.dtype) -> Guarded:
        return self.place(torch.full((torch.Size(shape).numel(),), float("nan"), dtype=dtype))


def probe(s: Setting) -> Iterator[Tensor | Guarded]:
    for seed in SEEDS[:: len(SEEDS) - 1] if s.number % 4 else SEEDS:
        yield zo.ops.probe(s.case.numel, seed, offset=s.case.offset, dtype=s.case.dtype, device=s.device)


def apply_probe_(s: Setting) -> Iterator[Tensor | Guarded]:
    x = s.values()
    zo.ops.apply_probe_(x.tensor, s.turn(ALPHAS), s.turn(SEEDS), offset=s.case.offset)
    yield x


def apply_probe(s: Setting) -> Iterator[Tensor | Guarded]:
    for dtype in DTYPES:
        x, out = s.values(), s.poisoned((s.case.numel,), dtype)
        zo.ops.apply_probe(x.tensor, s.turn(ALPHAS), s.turn(SEEDS), offset=s.case.offset, out=out.tensor)
        yield from (x, out)


def apply_probes(s: Setting) -> Iterator[Tensor | Guarded]:
    count, dtype = s.turn((2, 0, 5, 1, 3)), s.turn(DTYPES)
    x, out = s.values(), s.poisoned((count, 2, s.case.numel), dtype)
    where = s.device if s.number % 2 else "cpu"  # both are allowed
    seeds = torch.tensor([_signed(seed) for seed in SEEDS[:count]], dtype=torch.int64, device=where)
    alpha = torch.tensor(s.turn(ALPHAS), dtype=torch.float64, device=where)
    members = out.tensor.view(count, 2, s.case.numel)
    zo.ops.apply_probes(x.tensor, alpha, seeds, offset=s.case.offset, out=members)
    yield from (x, out)


def swap_probe_(s: Setting) -> Iterator[Tensor | Guarded]:
    x = s.values()
    leave, enter = s.turn(ALPHAS), s.turn(ALPHAS[1:])
    zo.ops.swap_probe_(x.tensor, leave, s.turn(SEEDS), enter, s.turn(SEEDS[1:]), offset=s.case.offset)
    yield x


def accumulate_probes_(s: Setting) -> Iterator[Tensor | Guarded]:
    for count in (s.turn(_ROWS), *((s.turn(_MANY_ROWS),) if s.case in FEW_CASES + SHARED_CASES else ())):
        x = s.values()
        coeffs = make_values(count, torch.float64).nan_to_num(0.25, 0.5, -0.5).clamp(-1e30, 1e30)
        zo.ops.accumulate_probes_(
            x.tensor,
            coeffs,
            [(SEEDS[i % len(SEEDS)] + i // len(SEEDS)) % 2**64 for i in range(count)],
            offset=s.case.offset,
            decay=s.turn(_DECAYS),
            grid=s.turn(_GRIDS),
            undo_alpha=s.turn(_UNDONE),
            undo_seed=s.turn(SEEDS),
        )
        yield x


OPS: dict[str, Callable[[Setting], Iterator[Tensor | Guarded]]] = {
    function.__name__: function
    for function in (probe, apply_probe_, apply_probe, apply_probes, swap_probe_, accumulate_probes_)
}


def parity(device: str, backend: str, op: str) -> dict[str, Any]:
    """`backend` on the device against the CPU's kernels (in a rehearsal, of these against the reference)."""
    compared = 0
    for number, case in enumerate(_CASES[device]):
        for lead in (0, 1 + number % 3):
            what = f"{op} on {case}, {lead} elements from an aligned address"
            with zo.backend("cpu" if device == "cuda" else "reference"):
                expected = list(OPS[op](Setting(case, number, "cpu", lead)))
            with zo.backend(backend):
                actual = list(OPS[op](Setting(case, number, device, lead)))
            for got, wanted in zip(actual, expected, strict=True):
                assert_same_bits(_values(got).cpu(), _values(wanted), what)
                if isinstance(got, Guarded):
                    got.assert_surroundings_untouched(what)
                compared += 1
    return {"compared": compared}


def _values(x: Tensor | Guarded) -> Tensor:
    return x.tensor if isinstance(x, Guarded) else x


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed
