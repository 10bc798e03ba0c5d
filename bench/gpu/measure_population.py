"""The population forward: against one call of FlashRNN for each probe and sign, and against float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.models import FlashLM
from zo_kernels.params.arena import ParameterArena
from zo_kernels.philox import probe_seeds

from .sizes import ON
from .timing import in_turns, ratio, summary
from .ways import WAYS, batch_of, flash_backend

_EPS = 2.0**-7
_RIVALS_PROBES = 4


def over_one_by_one(device: str, way: str) -> dict[str, Any]:
    """Times faster than moving theta from probe to probe and calling FlashLM's loss there, "100k" of the sizes."""
    size, chosen = ON[device]["100k"], WAYS[way]
    tokens, targets = batch_of(size, device)
    seeds = torch.from_numpy(probe_seeds(0, 0, size.probes))
    few = min(_RIVALS_PROBES, size.probes)
    model, rival = chosen.model(size, device), WAYS["flash"].model(size, device)
    assert isinstance(rival, FlashLM)
    arena = ParameterArena(rival)
    with chosen.context(), torch.no_grad():
        population = model.population(tokens, targets, precision=chosen.precision)
        times = in_turns(
            device,
            {
                "ours": lambda: population.population_loss(seeds, _EPS),
                "one by one": lambda: _one_by_one(rival, arena, tokens, targets, seeds[:few].tolist()),
            },
            rounds=5,
            warm_up=2,
        )
    times["one by one"] = [seconds * size.probes / few for seconds in times["one by one"]]
    result: dict[str, Any] = {
        "figures": {"times faster": ratio(times["one by one"], times["ours"])},
        "rows": [{"what": name, **summary(seconds)} for name, seconds in times.items()],
        "short": way,
        "note": f"{size.probes} probes; one by one: scaled from {few}, flashrnn's {flash_backend(rival, 'float32')}",
    }
    if isinstance(model, FlashLM):
        result["by"] = flash_backend(model, chosen.precision)
    return result


def _one_by_one(model: FlashLM, arena: ParameterArena, tokens: Tensor, targets: Tensor, seeds: list[int]) -> Tensor:
    losses = []
    for seed in seeds:
        for alpha in (_EPS, -2 * _EPS):
            zo.ops.apply_probe_(arena.flat, alpha, seed)
            losses.append(model.loss(tokens, targets))
        zo.ops.apply_probe_(arena.flat, _EPS, seed)
    return torch.stack(losses).view(-1, 2).cpu()


def correlation(device: str, way: str) -> dict[str, Any]:
    """Of L+ - L- over 64 probes with float64 central differences on the CPU, at the same float32 weights."""
    size, chosen, exponent = ON[device]["100k"]._replace(batch=64), WAYS[way], -10
    model = chosen.model(size, "cpu")
    tokens, targets = batch_of(size, "cpu")
    seeds = torch.from_numpy(probe_seeds(0, 0, 64))
    expected = copy.deepcopy(model).double().population_loss(tokens, targets, seeds, 2.0**exponent)
    there = model.to(device)
    with chosen.context():
        losses = there.population_loss(
            tokens.to(device), targets.to(device), seeds, 2.0**exponent, precision=chosen.precision
        )
    pair = torch.stack([losses.diff(dim=1).flatten(), expected.diff(dim=1).flatten()])
    return {"figures": {"correlation": float(torch.corrcoef(pair)[0, 1])}, "note": f"eps 2^{exponent}, 64 probes"}
