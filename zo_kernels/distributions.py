"""The distributions of a probe's elements in plain NumPy, against which the kernels are tested.

    "rademacher"  +1 or -1, from the bits of stream RADEMACHER (`zo_kernels.philox`); variance 1
    "sparse-K"    the same sign with probability 1/K, else 0, for K = 2^m from 2 to 65536; variance 1/K. An element is
                  kept if its bit is 1 in each of the m blocks of stream SPARSITY with counter word 3 = 0 .. m - 1
    "uniform"     uniform on (-sqrt 3, sqrt 3); variance 1
    "normal"      normal, by the Box-Muller transform; variance 1, no element beyond 6.67

An element is a float32 number. It depends only on (distribution, seed, j) and is the same for tensors of every dtype.
The last two distributions are made from w_j, the word of element j in stream UNIFORM or NORMAL
(`philox.element_words`).

    uniform: z_j = (2 (w_j div 2^8) + 1 - 2^24) 2^-24 * sqrt 3
    normal:  for i with i div 32 even, a = w_i and b = w_(i+32) give z_i and z_(i+32):
             u = (a div 2 + 1/2) 2^-31,  r = sqrt(-2 ln u),  t = 2 pi b / 2^32,  z_i = r cos t,  z_(i+32) = r sin t

All operations are in float32, in the order of the code below, each rounded to nearest even and none contracted. ln,
cos and sin are polynomials; a normal element is within 5 units in the last place of the formula. The only library
function is the square root, which IEEE 754 rounds correctly, so all backends agree to the last bit.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import numpy.typing as npt

from .philox import Stream, element_words, probe_bits

_Floats = npt.NDArray[np.float32]

_SQRT3 = np.float32(3.0**0.5)
_LN2 = np.float32(0.693147182464599609375)
# Minimax polynomials by Lawson's algorithm: ln(1 + f) = f - f^2/2 + f^3 P(f) where sqrt(1/2) <= 1 + f < sqrt 2, and
# sin(pi/4 y) = y S(y^2), cos(pi/4 y) = 1 + y^2 C(y^2) where |y| <= 1. The highest power comes first.
_LOG = np.array(
    [-0.07634497, 0.12761576, -0.13160183, 0.14201757, -0.16623357, 0.20001227, -0.2500082, 0.3333333], np.float32
)
_SIN = np.array([-3.5950467e-05, 0.002490001, -0.080745436, 0.78539819], np.float32)
_COS = np.array([3.5303381e-06, -0.00032594008, 0.015854327, -0.30842513], np.float32)


@cache
def parse(name: str) -> tuple[Stream, int]:
    """The stream that makes the elements, and how many bits of SPARSITY must be 1 for an element to be kept.

    Raises ValueError for an unknown name.
    """
    if name == "rademacher":
        return Stream.RADEMACHER, 0
    if name == "normal":
        return Stream.NORMAL, 0
    if name == "uniform":
        return Stream.UNIFORM, 0
    match = re.fullmatch("sparse-([1-9][0-9]{0,4})", name) if isinstance(name, str) else None
    sparsity = int(match[1]) if match else 0
    if not (2 <= sparsity <= 65536 and sparsity & (sparsity - 1) == 0):
        raise ValueError(
            "distribution must be 'rademacher', 'normal', 'uniform' or 'sparse-K' with K a power of two from 2 to "
            f"65536, not {name!r}"
        )
    return Stream.RADEMACHER, sparsity.bit_length() - 1


def check_distribution(name: str) -> None:
    """Raises ValueError unless `name` is a distribution of probes."""
    parse(name if isinstance(name, str) else repr(name))


def sparse(k: int) -> str:
    """The name of the sparse distribution that keeps one element in k. Raises ValueError as `check_distribution`."""
    name = f"sparse-{k}"
    check_distribution(name)
    return name


def variance(name: str) -> float:
    """Variance of an element, by which estimators divide. Raises ValueError for an unknown name."""
    return 2.0 ** -parse(name)[1]


def is_exact_in_place(name: str) -> bool:
    """Whether all elements are -1, 0 or 1, so that adding and subtracting alpha * p on a grid is exact.

    Raises ValueError for an unknown name.
    """
    return parse(name)[0] is Stream.RADEMACHER


def draw(name: str, numel: int, seed: int, offset: int = 0) -> _Floats:
    """Elements offset .. offset + numel of the probe of `seed`: float32 [numel].

    Raises ValueError for an unknown name, or unless `offset` is a non-negative multiple of 128.
    """
    stream, sparsity = parse(name)
    if stream is Stream.RADEMACHER:
        z = np.where(probe_bits(numel, seed, offset), np.float32(1), np.float32(-1))
        for number in range(sparsity):
            z[~probe_bits(numel, seed, offset, stream=Stream.SPARSITY, number=number)] = 0
        return z
    if stream is Stream.UNIFORM:
        odd = 2 * (element_words(numel, seed, offset, stream) >> np.uint32(8)).astype(np.int32) + np.int32(1 - 2**24)
        return odd.astype(np.float32) * np.float32(2.0**-24) * _SQRT3
    words = element_words(-(-numel // 64) * 64, seed, offset, stream).reshape(-1, 2, 32)
    return np.stack(_box_muller(words[:, 0], words[:, 1]), axis=1).reshape(-1)[:numel]


def _box_muller(a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> tuple[_Floats, _Floats]:
    r = np.sqrt(np.float32(-2) * _log((a >> np.uint32(1)).astype(np.int32)))
    quarter = (b + np.uint32(2**29)) >> np.uint32(30)  # nearest quarter turn; the rest is at most an eighth
    y = (b - (quarter << np.uint32(30))).view(np.int32).astype(np.float32) * np.float32(2.0**-29)
    square = y * y
    sin, cos = y * _polynomial(_SIN, square), square * _polynomial(_COS, square) + np.float32(1)
    swap = quarter & 1 == 1
    x, y = np.where(swap, sin, cos), np.where(swap, cos, sin)
    return r * np.where((quarter + np.uint32(1)) & 2 == 2, -x, x), r * np.where(quarter & 2 == 2, -y, y)


def _log(k: npt.NDArray[np.int32]) -> _Floats:
    """ln((k + 1/2) 2^-31) for k >= 0."""
    half, unit = np.float32(0.5), np.float32(2.0**-31)
    bits = ((k.astype(np.float32) + half) * unit).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)  # 0x3F3504F3 are the bits of sqrt(1/2)
    scaled = (bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
    # For u close to 1, float32 u has lost the low digits of u - 1, so compute u - 1 from k.
    f = np.where(exponent == 0, ((k + np.int32(-(2**31))).astype(np.float32) + half) * unit, scaled)
    square = f * f
    tail = square * f * _polynomial(_LOG, f) - half * square
    return f + tail + exponent.astype(np.float32) * _LN2


def _polynomial(coefficients: _Floats, x: _Floats) -> _Floats:
    """Evaluates a polynomial by Horner's rule."""
    value = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + c
    return value
