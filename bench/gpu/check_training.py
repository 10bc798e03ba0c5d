"""The optimizer on the device: updates and restored parameters bit for bit, and a short run beside the CPU's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

import zo_kernels as zo
from tests.cases import assert_same_bits
from tests.recurrent import Shape, make_batch
from zo_kernels.models import LSTM

_SHAPE = Shape(vocab=11, embed=8, heads=4, head_dim=8, batch=16, time=6)

_MODES = (
    (torch.float32, "inplace"),
    (torch.float64, "inplace"),
    (torch.float32, "shadow"),
    (torch.bfloat16, "shadow"),
    (torch.float16, "shadow"),
)

_STEPS = {"cuda": 40, "cpu": 5}

_APART = 1e-4
"""Nats by which the losses of a short run may be apart from the CPU's: each step feeds the rounding of the last one's
losses back into the parameters."""


class Given:
    """A population whose losses are known: the same on every device."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        generator = torch.Generator().manual_seed(int(seeds[0]) % 2**32)
        return 2 + eps * torch.randn(len(seeds), 2, generator=generator, dtype=torch.float64)


class _Enough(Exception):
    pass


def _pair(dtype: torch.dtype, mode: str, device: str) -> tuple[LSTM, zo.optim.CDRGE]:
    shape = _SHAPE
    model = LSTM(shape.vocab, shape.embed, shape.heads * shape.head_dim, shape.heads, seed=0, dtype=dtype)
    model.to(device)
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1, eps=2.0**-5, probes=24, weight_decay=0.01, mode=mode)
    return model, optimizer


def optimizer(device: str) -> dict[str, Any]:
    """Given the same losses the same update as on the CPU, and parameters restored after any number of probes."""
    for dtype, mode in _MODES:
        what = f"{dtype} {mode}"
        (here, slow), (there, ours) = _pair(dtype, mode, "cpu"), _pair(dtype, mode, device)
        for step in range(3):
            with zo.backend("cpu" if device == "cuda" else "reference"):
                slow.step(Given())
            ours.step(Given())
            for got, wanted in zip(there.parameters(), here.parameters(), strict=True):
                assert_same_bits(got.detach().cpu(), wanted.detach(), f"{what}, after {step + 1} updates")
        before = ours.arena.flat.clone()
        calls, seen = 0, 0

        def closure(before: Tensor = before, arena: zo.params.Arena = ours.arena) -> float:
            nonlocal calls, seen
            calls += 1
            seen += not torch.equal(arena.flat, before)
            if calls == 2 * 24:
                raise _Enough
            return 1.0

        with suppress(_Enough):
            ours.step(closure)
        assert calls == seen == 2 * 24, f"{what}: {seen} of {calls} closure calls saw moved parameters"
        assert_same_bits(ours.arena.flat.cpu(), before.cpu(), f"{what}, restored after {calls} moves")
    return {"modes": len(_MODES)}


def training(device: str) -> dict[str, Any]:
    """A run from the same seed: losses of every step within a bound of the CPU's, and falling."""
    steps = _STEPS[device]
    tokens, targets = make_batch(_SHAPE, ignored=0)
    runs: list[list[float]] = []
    for where in ("cpu", device):
        model, ours = _pair(torch.float32, "inplace", where)
        losses = []
        with zo.backend("reference" if device == "cpu" and not runs else where):
            for _ in range(steps):
                losses.append(ours.step(model.population(tokens.to(where), targets.to(where))))
        runs.append(losses)
    apart = max(abs(a - b) for a, b in zip(*runs, strict=True))
    assert apart <= _APART, f"losses of {steps} steps are apart by {apart:.2g}, allowed {_APART}"
    assert runs[1][-1] < runs[1][0], f"the loss does not fall: {runs[1][0]:.3f} to {runs[1][-1]:.3f}"
    return {"steps": steps, "nats apart, at most": apart, "allowed": _APART, "losses": [runs[1][0], runs[1][-1]]}
