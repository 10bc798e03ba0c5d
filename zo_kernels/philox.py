"""The probe contract in plain NumPy, against which the kernels are tested, and the seeds of a run.

    p_j(seed) = +1 if bit(j) else -1,   bit(j) = bit (j mod 32) of word ((j div 32) mod 4) of
    Philox4x32-10(counter=(lo32(j div 128), hi32(j div 128), stream, 0), key=(lo32(seed), hi32(seed)))

j is an index in the flat parameter space. The bits depend only on (seed, stream, j). `zo_kernels.distributions` draws
other probes from other streams. Philox is from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1,
2, 3", SC 2011; `tests/data/philox4x32_kat.txt` holds Random123's check values. `csrc/philox.h` implements the same
contract independently, for the kernels.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

BLOCK_SIGNS = 128
"""Number of signs that one Philox call makes. Offsets in the flat parameter space are multiples of 128."""

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Stream(IntEnum):
    """Counter word 2 of Philox, which separates the uses of one seed."""

    RADEMACHER = 0
    NORMAL = 1
    UNIFORM = 2
    STOCHASTIC_ROUNDING = 3
    SEEDS = 4
    SPARSITY = 5
    ACTIVITY = 6


def philox4x32_10(counter: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Philox4x32 with 10 rounds: uint32 [..., 4] from the 32-bit words `counter` [..., 4] and `key` [..., 2]."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(_W0)) & _LOW, (k1 + np.uint64(_W1)) & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def probe_bits(
    numel: int, seed: int, offset: int = 0, *, stream: Stream = Stream.RADEMACHER, number: int = 0
) -> npt.NDArray[np.bool_]:
    """The signs of elements offset .. offset + numel of the Rademacher probe of `seed`: bool [numel], True for +1.

    `seed` is taken modulo 2^64. `stream` and `number` are counter words 2 and 3; they select other bits with the same
    layout. Raises ValueError unless `offset` is a non-negative multiple of 128.
    """
    block = _blocks(numel, offset)
    words = philox4x32_10(_counter(block, stream, np.full_like(block, number)), _key(seed))
    return np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little").astype(bool)[:numel]


def element_words(numel: int, seed: int, offset: int, stream: Stream) -> npt.NDArray[np.uint32]:
    """One random word for each of the elements offset .. offset + numel: uint32 [numel].

    The word of element j is word (j div 32) mod 4 of Philox4x32-10(counter=(lo32(j div 128), hi32(j div 128), stream,
    j mod 32), key=seed). Where `probe_bits` uses 32 bits of one call, this uses 32 calls. Raises the same ValueError.
    """
    block = _blocks(numel, offset)[:, None]
    number = np.broadcast_to(np.arange(32, dtype=np.uint64), (len(block), 32))
    words = philox4x32_10(_counter(np.broadcast_to(block, number.shape), stream, number), _key(seed))
    return words.swapaxes(1, 2).reshape(-1)[:numel]


def rounding_bits(numel: int, seed: int, offset: int = 0) -> npt.NDArray[np.uint16]:
    """The random bits by which elements offset .. offset + numel are rounded to 16 bits: uint16 [numel].

    Those of element j are bits 16 (j mod 2) to 16 (j mod 2) + 15 of word (j mod 8) div 2 of
    Philox4x32-10(counter=(lo32(j div 128), hi32(j div 128), Stream.STOCHASTIC_ROUNDING, (j mod 128) div 8), key=seed).
    Raises the same ValueError as `probe_bits`.
    """
    block = _blocks(numel, offset)[:, None]
    number = np.broadcast_to(np.arange(16, dtype=np.uint64), (len(block), 16))
    words = philox4x32_10(
        _counter(np.broadcast_to(block, number.shape), Stream.STOCHASTIC_ROUNDING, number), _key(seed)
    )
    return words.astype("<u4").view("<u2").reshape(-1)[:numel]


def probe_seeds(run_seed: int, step: int, probes: int) -> npt.NDArray[np.int64]:
    """The seeds of the probes of one step: int64 [probes] (the 64 bits of a seed as two's complement).

    Seed i is words 0 and 1 of Philox4x32-10(counter=(lo32(step), hi32(step), Stream.SEEDS, i), key=run_seed). It
    depends only on (run seed, step, i), so any rank can make any of them. Two probes of a run share a seed with
    probability 2^-64. Raises ValueError unless step is in [0, 2^64) and probes in [0, 2^32).
    """
    if not (0 <= step < 2**64 and 0 <= probes < 2**32):
        raise ValueError(f"step must be in [0, 2^64) and probes in [0, 2^32), not {step} and {probes}")
    probe = np.arange(probes, dtype=np.uint64)
    high, low = divmod(step, 2**32)
    counter = np.stack(
        [np.full_like(probe, low), np.full_like(probe, high), np.full_like(probe, Stream.SEEDS), probe], -1
    )
    words = philox4x32_10(counter, _key(run_seed)).astype(np.uint64)
    return (words[:, 0] | (words[:, 1] << _HALF)).view(np.int64)


def _blocks(numel: int, offset: int) -> npt.NDArray[np.uint64]:
    if offset < 0 or offset % BLOCK_SIGNS:
        raise ValueError(f"offset must be a non-negative multiple of {BLOCK_SIGNS}, not {offset}")
    return np.uint64(offset // BLOCK_SIGNS) + np.arange(-(-numel // BLOCK_SIGNS), dtype=np.uint64)


def _counter(block: npt.NDArray[np.uint64], stream: Stream, number: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return np.stack([block & _LOW, block >> _HALF, np.full_like(block, stream), number], axis=-1)


def _key(seed: int) -> npt.NDArray[np.uint64]:
    high, low = divmod(seed % 2**64, 2**32)
    return np.array([low, high], np.uint64)
