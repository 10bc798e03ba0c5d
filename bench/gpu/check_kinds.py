"""What the training system does on the device beside CD-RGE: distributions, replayed steps, DNCs, back-propagation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.cases import assert_same_bits
from tests.recurrent import Shape, make_batch
from zo_kernels.models import MODEL_NAMES, LanguageModel, build_model
from zo_kernels.models.build import has_memory
from zo_kernels.optim import ZeroOrder
from zo_kernels.optim.dense import Adam
from zo_kernels.train.bptt import BPTT
from zo_kernels.transforms import Transform, clip_norm, momentum

from .check_population import without_tf32

_DISTRIBUTIONS = ("rademacher", "normal", "uniform", "sparse-4")
_NUMEL = 5000
_SHAPE = Shape(vocab=11, embed=8, heads=2, head_dim=8, batch=4, time=6)

_LOSS_APART = 1e-4
"""Nats by which losses of float32 may be apart from the CPU's."""

_GRADIENT_APART = 1e-3
"""Of a gradient by back-propagation, as a share of its largest element."""


def distributions(device: str) -> dict[str, Any]:
    """The ops with each distribution: bits of the CPU."""
    for name in _DISTRIBUTIONS:
        ours, theirs = (_drawn(where, name) for where in (device, "cpu"))
        for what, (got, wanted) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_bits(got.cpu(), wanted, f"{name}, result {what}")
    return {"distributions": len(_DISTRIBUTIONS)}


def _drawn(device: str, name: str) -> list[Tensor]:
    x = torch.linspace(-1, 1, _NUMEL, device=device)
    probe = zo.ops.probe(_NUMEL, 7, offset=256, device=device, distribution=name)
    cast = zo.ops.apply_probe(x, 0.3, 8, dtype=torch.bfloat16, distribution=name)
    zo.ops.apply_probe_(x, 0.125, 9, offset=128, distribution=name)
    coeffs = torch.linspace(-0.5, 0.75, 17, dtype=torch.float64)
    zo.ops.accumulate_probes_(x, coeffs, torch.arange(17), decay=0.99, distribution=name)
    return [probe, cast, x]


def replays(device: str) -> dict[str, Any]:
    """Steps from given coefficients: bits of the CPU, but for Adam, which may differ by rounding."""
    windowed = [clip_norm(1.0), momentum(0.9, 3)]
    for name in _DISTRIBUTIONS:
        ours, theirs = (_replayed(where, name, windowed, None) for where in (device, "cpu"))
        assert_same_bits(ours.cpu(), theirs, f"{name}, replayed")
    ours, theirs = (_replayed(where, "rademacher", [], Adam()) for where in (device, "cpu"))
    apart = float((ours.cpu() - theirs).abs().max())
    assert apart <= 1e-5, f"Adam's parameters are apart by {apart:.2g}, allowed 1e-5"
    return {"distributions": len(_DISTRIBUTIONS), "Adam apart, at most": apart}


def _replayed(device: str, name: str, transforms: list[Transform], dense: Adam | None) -> Tensor:
    parameter = nn.Parameter(torch.linspace(-1, 1, _NUMEL).to(device))
    options: dict[str, Any] = {"distribution": name, "transforms": transforms, "dense": dense, "weight_decay": 0.1}
    optimizer = ZeroOrder([parameter], lr=0.01, eps=2.0**-7, probes=16, **options)
    for step in range(6):
        optimizer.replay(torch.randn(16, generator=torch.Generator().manual_seed(step)))
    return parameter.detach()


def memory(device: str, name: str) -> dict[str, Any]:
    """A DNC's population and forward beside the CPU's."""
    tokens, targets = make_batch(_SHAPE, ignored=0)
    seeds = torch.arange(3)
    here, there = _model(name, "cpu"), _model(name, device)
    wanted = here.population_loss(tokens, targets, seeds, 2.0**-6)
    got = there.population_loss(tokens.to(device), targets.to(device), seeds, 2.0**-6).cpu()
    apart = float((got - wanted).abs().max())
    with torch.no_grad(), without_tf32():
        plain = abs(float(there.loss(tokens.to(device), targets.to(device))) - float(here.loss(tokens, targets)))
    worst = max(apart, plain)
    assert worst <= _LOSS_APART, f"{name}: losses are apart by {worst:.2g}, allowed {_LOSS_APART}"
    return {"nats apart, at most": worst, "allowed": _LOSS_APART}


def bptt(device: str) -> dict[str, Any]:
    """One step of SGD with each model: the gradient beside the CPU's, with and without gradient checkpointing."""
    tokens, targets = make_batch(_SHAPE, ignored=0)
    worst = 0.0
    for name in MODEL_NAMES:
        for length in (None, 2):
            moved = [_moved(name, where, tokens, targets, length) for where in (device, "cpu")]
            for (key, got), wanted in zip(moved[0].items(), moved[1].values(), strict=True):
                scale = float(wanted.abs().max()) or 1.0
                apart = float((got - wanted).abs().max()) / scale
                assert apart <= _GRADIENT_APART, f"{name}, {key}: the gradient is off by {apart:.2g} of its largest"
                worst = max(worst, apart)
    return {"models": len(MODEL_NAMES), "apart, at most": worst, "allowed": _GRADIENT_APART}


def _moved(name: str, device: str, tokens: Tensor, targets: Tensor, length: int | None) -> dict[str, Tensor]:
    """By how much each parameter moves at lr 1."""
    model = _model(name, device)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with without_tf32():
        BPTT(model, lr=1.0, checkpoint_length=length).step(tokens.to(device), targets.to(device))
    return {key: (p.detach() - before[key]).cpu() for key, p in model.named_parameters()}


def _model(name: str, device: str) -> LanguageModel:
    slots, width = (6, 5) if has_memory(name) else (None, None)
    return build_model(
        name,
        _SHAPE.vocab,
        embed_dim=_SHAPE.embed,
        hidden_size=16,
        num_heads=2,
        memory_slots=slots,
        memory_width=width,
        seed=0,
    ).to(device)
