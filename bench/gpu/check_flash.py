"""FlashLM on the device against flashrnn's vanilla on the CPU."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch

from tests.recurrent import TOLERANCE, Shape, make_batch, make_seeds, randomise
from zo_kernels.models import IGNORE_INDEX, FlashLM

from .check_population import EPS, assert_near, without_tf32
from .sizes import ON
from .ways import flash_backend

_FAR = 2e-3
"""Nats a position in bfloat16, whose states are rounded in every step."""

_CORRELATION = 0.999
"""Of L+ - L- in bfloat16 with float32's."""


def flash(device: str, cell: str, precision: str) -> dict[str, Any]:
    """Losses of a population, and of the model itself; head size, heads and probes are those of "100k", for which
    flashrnn is then compiled."""
    size = ON[device]["100k"]
    shape = Shape(size.vocab, size.embed, size.num_heads, size.hidden_size // size.num_heads, 5, 3)
    sizes = size.vocab, size.embed, size.hidden_size, size.num_heads
    model = FlashLM(*sizes, cell=cell)
    randomise(cast(Any, model))  # it fills any model's parameters
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-1, 1)  # within what bfloat16 resolves at EPS
    there = copy.deepcopy(model).to(device)
    (tokens, targets), seeds = make_batch(shape), make_seeds(size.probes)
    scored = int((targets != IGNORE_INDEX).sum())
    few = min(8, size.probes)  # vanilla loops in Python
    expected = model.population_nats(tokens, targets, seeds[:few], EPS) / scored
    losses = there.population_nats(tokens.to(device), targets.to(device), seeds, EPS, precision=precision) / scored
    assert losses.isfinite().all(), "losses are not finite"
    off = float((losses[:few] - expected).abs().max())
    allowed = 2 * TOLERANCE if precision == "float32" else _FAR
    by = flash_backend(there, precision)
    assert off <= allowed, f"{cell} in {precision} by {by}: off by {off:.2g} nats a position, allowed {allowed:.2g}"
    pair = torch.stack([x.diff(dim=1).flatten() for x in (losses[:few], expected)])
    correlation = float(torch.corrcoef(pair)[0, 1])
    assert correlation >= _CORRELATION, f"{cell} in {precision} by {by}: differences correlate by {correlation:.5f}"
    if precision == "float32":
        with torch.no_grad(), without_tf32():
            loss = there.loss(tokens.to(device), targets.to(device))
            assert_near(loss, model.loss(tokens, targets), 2 * TOLERANCE, f"loss of {cell} by {by}")
    return {"by": by, "nats a position off": off, "allowed": allowed, "correlation": correlation}
