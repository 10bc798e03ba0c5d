"""flashrnn's `cuda` backend without a GPU: its contract and its arithmetic in plain torch, behind its own front end."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zo_kernels.models.flashrnn import call
from zo_kernels.models.flashrnn.facts import Facts, Toolkit
from zo_kernels.models.flashrnn.load import flashrnn

GPU = Facts("cuda", (9, 0), (13, 0), Toolkit("/opt/cuda", (13, 0)), ninja=True, triton=(3, 8))
"""A machine on which every backend but cuda_fused runs."""


@dataclass
class Kernel:
    """What the stand-in was called with: configs, and the tensors that reached it."""

    configs: list[Any] = field(default_factory=list)
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    training: list[bool] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    """Weak references to what it returned."""
    kept: int = 0
    """Most earlier results that were still in memory at a call."""
    error: float = 0.0
    """Added to every hidden state."""


def next_states(cell: str, wx: Tensor, ry: Tensor, b: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One step of a cell: wx [B, MN, I, D], ry [B, MN, R, D], b [MN, G, D], states [B, MN, D]."""
    if cell == "gru":
        g = ry[:, :, 0] + b[:, 0]
        r, z = ((wx[:, :, k] + ry[:, :, k + 1] + b[:, k + 1]).sigmoid() for k in range(2))
        return [z * states[0] + (1 - z) * (wx[:, :, 2] + b[:, 3] + r * g).tanh()]
    raw = (wx + ry + b).unbind(2)
    if cell == "elman":
        return [raw[0].tanh()]
    i, f, z, o = raw
    if cell == "lstm":
        c = f.sigmoid() * states[1] + i.sigmoid() * z.tanh()
        return [o.sigmoid() * c.tanh(), c]
    _, c, n, m = states
    kept = F.logsigmoid(f) + m
    new_m = torch.where(n == 0, i, torch.maximum(i, kept))
    i, f = (i - new_m).exp(), (kept - new_m).exp()
    c, n = f * c + i * z.tanh(), (f * n + i).clamp(min=1)
    return [o.sigmoid() * c / n, c, n, new_m]


def forward(cell: str, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
    """All states [S, T+1, B, MN, D]: products rounded to the dtype, the pointwise part float32, states rounded.

    wx: [T, B, MN, I, D]. states: [S, B, MN, D]. recurrent: [MN, P, R, D]. bias: [MN, G, D].
    """
    dtype = wx.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    every = [states]
    for wx_t in wx:
        h = every[-1][0].to(wide)
        ry = torch.einsum("bnp,nprd->bnrd", h, recurrent.to(wide)).to(dtype).to(wide)
        current = next_states(cell, wx_t.to(wide), ry, bias.to(wide), [s.to(wide) for s in every[-1]])
        every.append(torch.stack(current).to(dtype))
    return torch.stack(every, dim=1)


@contextmanager
def cuda_backend(monkeypatch: pytest.MonkeyPatch, facts: Facts = GPU) -> Iterator[Kernel]:
    """Lets flashrnn's `cuda` be chosen on the CPU, and compute."""
    kernel = Kernel()

    def generate(training: bool, config: Any) -> type:
        kernel.configs.append(config)

        class Function:
            @staticmethod
            def apply(training: bool, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
                kernel.training.append(training)
                kernel.kept = max(kernel.kept, sum(result() is not None for result in kernel.results))
                assert (len(recurrent), recurrent.shape[1]) == (config.num_heads, config.head_dim)
                for x in (wx, states, recurrent, bias):
                    assert x.is_contiguous()
                    assert x.dtype == config.torch_dtype
                kernel.calls.append((wx, states, recurrent, bias))
                every = forward(config.function, wx, states, recurrent, bias)
                every[0, 1:] += kernel.error
                kernel.results.append(weakref.ref(every.untyped_storage()))
                return every

        return Function

    flashrnn()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["flashrnn.flashrnn.flashrnn"], "FlashRNNFuncGenerator", generate)
        patch.setattr(call, "gather", lambda device: facts)
        yield kernel
