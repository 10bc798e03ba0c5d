"""The signs of activity probes in torch, on any device."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ...philox import BLOCK_SIGNS, Stream
from .problem import ActivityProblem, signs_stride

_LOW = 0xFFFFFFFF

_WORDS_AT_ONCE = 1 << 18
"""Of Philox: each operation is a pass over them, which should stay in the cache and be worth a call."""


class StepSigns:
    """The signs of one problem, step by step, as `reference.signs` defines them."""

    def __init__(self, problem: ActivityProblem) -> None:
        self._problem, self._units = problem, problem.weights.bias.numel()
        self._blocks = signs_stride(self._units) // BLOCK_SIGNS
        of_step = max(1, 4 * self._blocks * len(problem.seeds) * len(problem.tokens))
        self._steps_at_once = min(max(1, _WORDS_AT_ONCE // of_step), problem.tokens.shape[1])
        self._first, self._octets = -1, torch.empty(0)

    def at(self, step: int) -> Tensor:
        """Returns xi of a step for n probes: [n, B, units], of the problem's dtype, on its device."""
        first = step // self._steps_at_once * self._steps_at_once
        if first != self._first:
            self._first, self._octets = first, self._generate(first)
        octets_nBO = self._octets[:, :, step - first]
        table = _signs_of_bytes(self._problem.dtype, octets_nBO.device)
        return table[octets_nBO.int()].flatten(2)[..., : self._units]

    def _generate(self, first: int) -> Tensor:
        """The bits from step `first` on, as bytes [n, B, steps, bytes of a step]."""
        problem, blocks, device = self._problem, self._blocks, self._problem.tokens.device
        block = torch.arange(first * blocks, (first + self._steps_at_once) * blocks, device=device)
        number = torch.arange(len(problem.tokens), device=device)[:, None] + problem.first_sequence
        key = torch.from_numpy(problem.seeds).to(device)[:, None, None]
        stream = torch.tensor(int(Stream.ACTIVITY), device=device)
        words = _philox((block & _LOW, block >> 32, stream, number), key)
        octets = words.to(torch.int32).view(torch.uint8)  # little-endian, as everywhere that torch runs
        return octets.view(*words.shape[:2], self._steps_at_once, -1)


@cache
def _signs_of_bytes(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The eight signs of each value of a byte, [256, 8]."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(bits).to(device, dtype) * 2 - 1


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> Tensor:
    """Philox4x32-10 of counter words and 64-bit keys that broadcast: [..., 4], the words as signed 32-bit numbers.

    A product of 32-bit words is right in int64 modulo 2^64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    words = torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)
    return torch.where(words >= 2**31, words - 2**32, words)
