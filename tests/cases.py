"""One list of cases for the parity tests, opcheck and the benchmarks, and tools that compare results bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels import _C

each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

EDGE = 2**39
"""Element at which the high half of the block index first changes; it does again at every multiple."""

LAST = 2**63 - 1
"""offset + numel may reach this, no more."""

DISTRIBUTIONS = ("normal", "uniform", "sparse-2", "sparse-64", "sparse-65536")
"""Of probes, besides "rademacher"."""

SEEDS = (0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7C15, 2**64 - 1, 42)


class Case(NamedTuple):
    """A tensor: its dtype, its number of elements, and where it lies in the flat parameter space."""

    dtype: torch.dtype
    numel: int
    offset: int

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}-{self.numel}-at-{self.offset}"


# Around vectors (2 to 16 lanes), blocks (128) and tiles (512, 1024 or 2048 elements, by instruction set).
_SIZES: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 127, 128, 129, 300, 511, 512, 513)
_SIZES += (1023, 1024, 1025, 2047, 2048, 2049, 4095, 4097, 6150)

# Each with a size that straddles what is special about it.
_PLACES = (
    (2500, 2**32 - 128),
    (2500, EDGE - 128),
    (2500, EDGE - 1024),
    (2500, EDGE - 2048),
    (3000, EDGE - 2176),
    (2500, EDGE),
    (2500, 3 * EDGE - 384),
    (2500, 2**40 + 128),
    (2500, 2**56 - 640),
    (2559, LAST - 2559),
    (1, LAST - 127),
)

# Several grains of csrc/cpu/dispatch.cpp, so that two threads share the work, of uneven length.
_SHARED = ((70001, 0), (131333, EDGE - 66048))

SMALL_CASES = [Case(dtype, n, 128 * (n % 5)) for dtype in DTYPES for n in _SIZES]
PLACED_CASES = [Case(dtype, n, offset) for dtype in DTYPES for n, offset in _PLACES]
SHARED_CASES = [Case(dtype, n, offset) for dtype in DTYPES for n, offset in _SHARED]
CASES = SMALL_CASES + PLACED_CASES + SHARED_CASES

# A few of them, for what is slow per case.
FEW_CASES = [case for case in CASES if case.numel in (0, 129) or case.offset == EDGE - 1024]

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_POISON = {  # NaNs with a payload that no computation makes
    torch.float32: 0x7FE5A5A5,
    torch.float64: 0x7FF5A5A5A5A5A5A5,
    torch.bfloat16: 0x7FE5,
    torch.float16: 0x7EE5,
}


def bits(x: Tensor) -> Tensor:
    """The elements' bit patterns as integers."""
    return x.view(_INTEGER[x.element_size()])


def special_values(dtype: torch.dtype) -> Tensor:
    """Zeros, NaN, infinities, the subnormals at both ends, the largest, and ties of every narrower dtype."""
    info = torch.finfo(dtype)
    nan, inf, tiny, last = float("nan"), float("inf"), info.tiny, info.tiny * info.eps
    values = [0.0, -0.0, nan, inf, -inf, 1.0, -1.0, info.max, -info.max]
    values += [tiny, -tiny, tiny / 2, tiny - last, last, -last]  # the smallest normal, and subnormals
    for narrow in (torch.bfloat16, torch.float16, torch.float32):
        eps = torch.finfo(narrow).eps  # 1 + eps/2 and 1 + 3/2 eps are ties: to even is down, then up
        values += [1 + eps / 2, 1 + 1.5 * eps, -1 - eps / 2, 1 + eps / 2 * (1 + 2**-10), torch.finfo(narrow).max]
    values += [65519.0, 65520.0]  # the last that rounds to float16's largest, the first that rounds to infinity
    # A tie of the 16-bit dtypes only once it was rounded to float32: twice rounded is not rounded once.
    values += [1 + 2**-8 + 2**-40, 1 + 2**-11 + 2**-40, 1 + 3 * 2**-8 - 2**-24, 1 + 3 * 2**-11 - 2**-24]
    values += [2.0**-24, 2.0**-25, 2.0**-133, 2.0**-134, 2.0**-149]
    # The NaNs that integer arithmetic on bit patterns could carry over into a number.
    nans = torch.tensor([-1, torch.iinfo(_INTEGER[dtype.itemsize]).max], dtype=_INTEGER[dtype.itemsize]).view(dtype)
    return torch.cat([torch.tensor(values, dtype=torch.float64).to(dtype), nans])


def make_values(numel: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers, every third replaced by one of the special values."""
    generator = torch.Generator().manual_seed(seed * 7919 + numel)
    values = torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype)
    special = special_values(dtype)
    chosen = special[torch.randint(len(special), (numel,), generator=generator)]
    return torch.where(torch.rand(numel, generator=generator) < 1 / 3, chosen, values)


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal bit for bit, where any NaN equals any other; -0 is not 0."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    if torch.equal(bits(actual), bits(expected)):
        return
    both_nan = actual.isnan() & expected.isnan()
    wrong = ((bits(actual) != bits(expected)) & ~both_nan).flatten().nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        got, wanted = actual.flatten()[at].item(), expected.flatten()[at].item()
        raise AssertionError(
            f"{what}: {len(wrong)} of {actual.numel()} differ; element {at} is {got!r}, not {wanted!r}"
        )


class Guarded:
    """A tensor inside a larger buffer, starting `lead` elements after its (aligned) start, that knows if its
    surroundings were written to."""

    def __init__(self, x: Tensor, lead: int = 3, trail: int = 20) -> None:
        buffer = torch.empty(lead + x.numel() + trail, dtype=x.dtype)
        self._before, self.tensor, self._after = buffer.split([lead, x.numel(), trail])
        bits(self._before).fill_(_POISON[x.dtype])
        bits(self._after).fill_(_POISON[x.dtype])
        self.tensor.copy_(x)

    def assert_surroundings_untouched(self, what: str) -> None:
        for part in (self._before, self._after):
            assert bool((bits(part) == _POISON[part.dtype]).all()), f"{what}: wrote outside"


def right_beside(device: str) -> str:
    """The backend that says, on the CPU, what is right on `device`: tests/ops holds "cpu" to the reference."""
    return "reference" if device == "cpu" else "cpu"


def engines(numel: int = 0) -> Iterator[str]:
    """Switches the CPU backend to each instruction set and, for tensors long enough to be shared, to 1 and 2 threads.

    tests/conftest.py puts the choice back after each test, whatever ended it.
    """
    for isa in _C.supported_isas():
        for threads in (1, 2) if numel > 4096 else (1,):
            _C.set_isa(isa)
            torch.set_num_threads(threads)
            yield f"{isa}, {threads} threads"


def assert_parity(op: Callable[[Tensor], Tensor | None], x: Tensor, lead: int = 3, what: str = "") -> Tensor:
    """`op` changes a tensor in place: on each engine it must do to x what it does with the reference backend.

    Returns that. x itself is not written.
    """
    with zo.backend("reference"):
        expected = x.clone()
        op(expected)
    with zo.backend("cpu"):
        for engine in engines(x.numel()):
            guarded = Guarded(x, lead)
            op(guarded.tensor)
            assert_same_bits(guarded.tensor, expected, f"{what} {engine}")
            guarded.assert_surroundings_untouched(f"{what} {engine}")
    return expected
