"""Draws the elements of probes of any distribution in Triton kernels. `zo_kernels.distributions` defines them; the
operations here are the same, in the same order, so that the bits are. Without fused multiply-adds, that is.
"""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl

from .triton_elements import BLOCKS, RADEMACHER, SIGN_32, philox, times_sign

NORMAL, SPARSITY = tl.constexpr(1), tl.constexpr(5)


@triton.jit
def _log_uniform(a: tl.tensor) -> tl.tensor:
    """ln((k + 1/2) 2^-31), k = a div 2."""
    half = a >> 1
    bits = ((half.to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3 are the bits of sqrt(1/2)
    scaled = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    near_one = ((half | SIGN_32).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    f = tl.where(exponent == 0, near_one, scaled)
    p = f * -0.07634497 + 0.12761576
    p = p * f + -0.13160183
    p = p * f + 0.14201757
    p = p * f + -0.16623357
    p = p * f + 0.20001227
    p = p * f + -0.2500082
    p = p * f + 0.3333333
    square = f * f
    tail = square * f * p - square * 0.5
    return f + tail + exponent.to(tl.float32) * 0.693147182464599609375


@triton.jit
def _normals(a: tl.tensor, b: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Two normals of the words a and b by the Box-Muller transform."""
    r = tl.sqrt_rn(_log_uniform(a) * -2.0)
    quarter = (b + 0x20000000) >> 30
    angle = (b - (quarter << 30)).to(tl.int32).to(tl.float32) * 1.862645149230957e-09
    square = angle * angle
    sine = square * -3.5950467e-05 + 0.002490001
    sine = sine * square + -0.080745436
    sine = sine * square + 0.78539819
    sine = sine * angle
    cosine = square * 3.5303381e-06 + -0.00032594008
    cosine = cosine * square + 0.015854327
    cosine = cosine * square + -0.30842513
    cosine = cosine * square + 1.0
    swap = (quarter & 1) == 1
    x = tl.where(swap, sine, cosine).to(tl.uint32, bitcast=True) ^ ((quarter + 1) >> 1 << 31)
    y = tl.where(swap, cosine, sine).to(tl.uint32, bitcast=True) ^ (quarter >> 1 << 31)
    return r * x.to(tl.float32, bitcast=True), r * y.to(tl.float32, bitcast=True)


@triton.jit
def _uniform(word: tl.tensor) -> tl.tensor:
    odd = (word >> 8 << 1).to(tl.int32) - 16777215
    return odd.to(tl.float32) * 5.9604644775390625e-08 * 1.7320508075688772


@triton.jit
def _kept_signs(sign: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """+1 or -1 by the bits of sign [BLOCKS] where those of keep are 1, else 0."""
    k = (31 - tl.arange(0, 32)).to(tl.uint32)[None, :]
    one = times_sign(tl.full([BLOCKS, 32], 1.0, tl.float32), sign[:, None] << k)
    return tl.where((keep[:, None] << k) >= SIGN_32, one, 0.0)


@triton.jit
def draw(
    seed: tl.int64, block: tl.int64, sparsity: tl.int32, STREAM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The elements of a tile whose first block is `block`, float32 [BLOCKS, 32] each: c, 32 + c, 64 + c and 96 + c.

    STREAM is the distribution's, 0 of sparse ones, whose `sparsity` is looked at when the kernel runs. Normals and
    uniforms take a word each, and call c of a block (counter word 3) has those of these four elements.
    """
    blocks = block + tl.arange(0, BLOCKS)
    if STREAM == RADEMACHER:
        s0, s1, s2, s3 = philox(seed, blocks, None, RADEMACHER)
        k0 = tl.full([BLOCKS], 0xFFFFFFFF, tl.uint32)
        k1, k2, k3 = k0, k0, k0
        for number in range(sparsity):
            w0, w1, w2, w3 = philox(seed, blocks, tl.zeros_like(blocks) + number, SPARSITY)
            k0 &= w0
            k1 &= w1
            k2 &= w2
            k3 &= w3
        return _kept_signs(s0, k0), _kept_signs(s1, k1), _kept_signs(s2, k2), _kept_signs(s3, k3)
    else:
        calls = tl.broadcast_to(tl.arange(0, 32)[None, :], [BLOCKS, 32])
        w0, w1, w2, w3 = philox(seed, tl.broadcast_to(blocks[:, None], [BLOCKS, 32]), calls, STREAM)
        if STREAM == NORMAL:
            z0, z1 = _normals(w0, w1)
            z2, z3 = _normals(w2, w3)
            return z0, z1, z2, z3
        else:
            return _uniform(w0), _uniform(w1), _uniform(w2), _uniform(w3)
