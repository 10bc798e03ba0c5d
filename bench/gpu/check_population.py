"""The population forwards and the models on the device, within the rounding of their arithmetic of the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import zo_kernels as zo
from tests.recurrent import SMALL, TOLERANCE, Shape, copies, make_batch, make_model, make_seeds, make_states
from zo_kernels.backends.base import RecurrentWeights
from zo_kernels.backends.recurrent import reference as exact
from zo_kernels.models import IGNORE_INDEX, RecurrentLM, States
from zo_kernels.params.arena import flat_offsets

from .ways import turned_on

EPS = 2.0**-5

_MIDDLE = Shape(30, 16, 3, 15, 5, 12)

SHAPES = {"cuda": (SMALL, _MIDDLE, Shape(100, 100, 12, 20, 70, 4)), "cpu": (SMALL, _MIDDLE)}

_NARROW = {torch.float32: 1.0, torch.bfloat16: 1.0, torch.float16: 1.0, torch.float64: 1e-6}
"""Of TOLERANCE, by the parameters' dtype: what rounding is worth."""

_NEAR, _FAR = 2e-5, 1e-3
"""Nats a position: half of all losses are off by less than the first, none by more than the second, where bfloat16
states may fall on the other side of the middle between two numbers."""


def recurrent(device: str, cell: str) -> dict[str, Any]:
    """Populations of a cell, for all dtypes, with and without states."""
    worst = 0.0
    for shape in SHAPES[device]:
        for dtype, share in _NARROW.items():
            model = make_model(cell, shape, dtype)
            model.embedding.requires_grad_(shape is not SMALL)  # frozen once
            worst = max(worst, _population_off(model, shape, device, share * TOLERANCE))
    return {"nats a position off, at most": worst, "allowed": TOLERANCE}


def _population_off(model: RecurrentLM, shape: Shape, device: str, allowed: float) -> float:
    (tokens, targets), seeds = make_batch(shape), make_seeds(5)
    scored = int((targets != IGNORE_INDEX).sum())
    there, worst = copy.deepcopy(model).to(device), 0.0
    for states in ((), make_states(model, len(seeds), shape.batch)):
        carried = tuple(state.to(device, copy=True) for state in states)
        with zo.backend("cpu" if device == "cuda" else "reference"):
            last = copies(states)
            expected = model.population_nats(tokens, targets, seeds, EPS, states=last)
        nats = there.population_nats(tokens.to(device), targets.to(device), seeds, EPS, states=carried)
        worst = max(worst, float((nats.cpu() - expected).abs().max()) / scored)
        for got, wanted in zip(carried, last, strict=True):
            assert_near(got, wanted, allowed, f"states of {model.cell} {shape}")
    assert worst <= allowed, f"{model.cell} {shape} in {model.bias.dtype} is off by {worst:.2g} nats a position"
    return worst


def forward(device: str, cell: str) -> dict[str, Any]:
    """forward, loss and next_logits of a model itself."""
    for shape in SHAPES[device]:
        for dtype in (torch.float32, torch.float64):
            model, (tokens, targets) = make_model(cell, shape, dtype), make_batch(shape)
            there, (tokens_there, targets_there) = (
                copy.deepcopy(model).to(device),
                (tokens.to(device), targets.to(device)),
            )
            with torch.no_grad(), without_tf32():
                for name, got, wanted in (
                    ("forward", there(tokens_there)[0], model(tokens)[0]),
                    ("loss", there.loss(tokens_there, targets_there), model.loss(tokens, targets)),
                    ("next_logits", there.next_logits(tokens_there)[0], model.next_logits(tokens)[0]),
                ):
                    assert_near(got, wanted, 4 * _NARROW[dtype] * TOLERANCE, f"{name} of {cell} {shape} in {dtype}")
    return {"allowed": 4 * TOLERANCE}


@contextmanager
def without_tf32() -> Iterator[None]:
    """cuDNN's recurrent layers, in `forward` and `loss`, round factors to TF32 unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def assert_near(actual: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    """Relative to the largest magnitude, where that is above 1. NaN is not near anything."""
    off = float((actual.cpu().double() - expected.double()).abs().max())
    size = max(1.0, float(expected.abs().max()))
    assert off <= allowed * size, f"{what}: off by {off:.2g}, allowed {allowed * size:.2g}"


def kernel(device: str) -> dict[str, Any]:
    """The own bfloat16 kernel against its arithmetic in float64: weights on a grid that bfloat16 resolves, hidden
    states rounded after every step."""
    off: list[Tensor] = []
    for shape in (Shape(11, 5, 2, 6, 3, 4), Shape(30, 16, 3, 16, 33, 8), Shape(100, 100, 12, 20, 50, 5)):
        model, (tokens, targets), seeds = _on_grid(make_model("lstm", shape)), make_batch(shape), make_seeds(4)
        model.input_weight.requires_grad_(shape.batch != 3)
        scored = int((targets != IGNORE_INDEX).sum())
        rounded = tuple(state.bfloat16().float() for state in make_states(model, len(seeds), shape.batch))
        there = copy.deepcopy(model).to(device)
        for states in ((), rounded):
            expected, last = _emulated(model, tokens, targets, seeds, states)
            carried = tuple(state.to(device, copy=True) for state in states)
            with turned_on():
                nats = there.population_nats(
                    tokens.to(device), targets.to(device), seeds, EPS, states=carried, precision="bfloat16"
                )
            off.append(((nats.cpu() - expected).abs() / scored).flatten())
            for got, wanted in zip(carried, last, strict=True):
                assert_mostly_near(got, wanted, f"{shape}")
    everything = torch.cat(off)
    median, worst = float(everything.median()), float(everything.max())
    assert median <= _NEAR, f"half of the losses are off by {median:.2g} nats a position or more, allowed {_NEAR}"
    assert worst <= _FAR, f"off by up to {worst:.2g} nats a position, allowed {_FAR}"
    return {"nats a position off, median": median, "at most": worst, "allowed": [_NEAR, _FAR]}


def assert_mostly_near(actual: Tensor, expected: Tensor, what: str) -> None:
    near = (actual.cpu().double() - expected).abs() < _NEAR
    assert near.double().mean() > 0.9, f"{what}: {int((~near).sum())} of {near.numel()} states are off"


@torch.no_grad()
def _on_grid(model: RecurrentLM) -> RecurrentLM:
    """Recurrent and output weights such that w, w + EPS and w - EPS are bfloat16 numbers."""
    for weight in (model.recurrent_weight, model.output_weight):
        weight.copy_((weight.clamp(-0.9, 0.9) * 256).round() / 256)
    return model


@torch.no_grad()
def _emulated(
    model: RecurrentLM, tokens: Tensor, targets: Tensor, seeds: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, States]:
    """Nats [n, 2] and the states after, in float64 but for the rounding of h to bfloat16."""
    offsets = flat_offsets(model)
    parameters = tuple(model.parameters())
    weights = RecurrentWeights(model.cell, tuple(offsets.get(p, -1) for p in parameters), *parameters)
    nats, last = torch.zeros(len(seeds), 2, dtype=torch.float64), tuple(state.double() for state in states)
    for i, seed in enumerate(seeds.tolist()):
        signs = exact.probe_of(weights, seed)
        for s, alpha in enumerate((EPS, -EPS)):
            member = exact.perturb(weights, alpha, signs)
            current = [state[i, s] for state in last] or exact.zero_states(member, len(tokens))
            for t in range(tokens.shape[1]):
                h, c = exact.step(member, tokens[:, t], current)
                current = [h.bfloat16().double(), c]
                logits = exact.logits_of(member, current[0])
                nats[i, s] += F.cross_entropy(logits, targets[:, t], reduction="sum")
            for state, after in zip(last, current, strict=False):
                state[i, s] = after
    return nats, last
