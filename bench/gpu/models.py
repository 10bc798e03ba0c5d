"""Populations and whole steps: Table 1 of arXiv 2505.17852, the usual code, and what is left of the precision."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.backends.pieces import Pieces
from zo_kernels.models import FlashLM, RecurrentLM
from zo_kernels.models.presets import PRESETS
from zo_kernels.ops.lists import apply_probe_list
from zo_kernels.philox import probe_seeds

from .timing import Figure, compare, in_turns

_EPS = 2.0**-7

SIZES: dict[str, tuple[int, float, float | None]] = {
    "100k": (96, 0.5, 5.7 / 100),
    "1M": (96, 1.0, None),
    "10M": (96, 4.0, None),
    "100M": (8, 25.3, None),
    "1.1B": (4, 39.5, 145.0 / 10),
}
"""Probes that are measured, of a step's 96, in which the forward is linear; GB of a step in the paper; and a bar: its
seconds there, over how much faster it is to be."""

WAYS = {"kernel": "bfloat16", "batched": "float32", "flash": "float32", "flash-bfloat16": "bfloat16"}
"""Ways to evaluate a population, with their precision: csrc/cuda/population.cu; in torch, with members as a dimension
of the batch (in a rehearsal, the CPU's kernel); FlashLM."""


def _setting(
    device: str, name: str, way: str, batch_size: int = 1024, rehearsed: bool = False
) -> tuple[RecurrentLM | FlashLM, tuple[Tensor, Tensor], Tensor]:
    """An LSTM of the paper's, its parameters drawn on the device; its batch, and a step's seeds."""
    preset, time, probes = PRESETS[f"paper-lstm-{name.lower()}"], 10, 96
    sizes = 100, 100, preset.hidden_size, preset.num_heads
    if rehearsed:
        sizes, batch_size, time, probes = (11, 5, 40, 2), 4, 3, 6
    make: Callable[..., RecurrentLM | FlashLM] = FlashLM if way.startswith("flash") else zo.models.LSTM
    torch.manual_seed(0)
    model, generator = make(*sizes, device=device), torch.Generator().manual_seed(0)
    tokens = torch.randint(sizes[0], (batch_size, time + 1), generator=generator).to(device)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return model, batch, torch.from_numpy(probe_seeds(0, 0, probes))


@torch.no_grad()
def population(device: str, way: str) -> Iterator[Figure]:
    """Against moving theta from probe to probe and calling FlashLM's loss there."""
    model, batch, seeds = _setting(device, "100k", way, rehearsed=device == "cpu")
    rival, few = _setting(device, "100k", "flash", rehearsed=device == "cpu")[0], seeds[:4].tolist()
    ours, space = model.population(*batch, precision=WAYS[way]), zo.params.ParameterSpace.of(rival)
    (parameters,) = space.batches(space.trained)

    def one_by_one() -> Tensor:
        losses = []
        for seed in few:
            for alpha in (_EPS, -2 * _EPS):
                parameters.run(partial(_add, alpha, seed))
                losses.append(rival.loss(*batch))
            parameters.run(partial(_add, _EPS, seed))
        return torch.stack(losses).cpu()

    ms = in_turns(device, {"ours": lambda: ours.population_loss(seeds, _EPS), "rival": one_by_one}, rounds=5)
    name = f"{len(seeds)} probes by {way} over one call a probe and sign, scaled from {len(few)}"
    yield compare(name, ms["ours"], ms["rival"], len(seeds) / len(few), unit="x", at_least=20)


def _add(alpha: float, seed: int, x: Pieces) -> None:
    apply_probe_list(x, x, alpha, seed, "rademacher")


def correlation(device: str, way: str) -> Iterator[Figure]:
    """Of L+ - L- over 64 probes with float64 central differences on the CPU, at the same float32 weights."""
    model, batch, _ = _setting("cpu", "100k", way, batch_size=64, rehearsed=device == "cpu")
    seeds, eps = torch.from_numpy(probe_seeds(0, 0, 64)), 2.0**-10
    expected = copy.deepcopy(model).double().population_loss(*batch, seeds, eps)
    tokens, targets = (x.to(device) for x in batch)
    losses = model.to(device).population_loss(tokens, targets, seeds, eps, precision=WAYS[way])
    pair = torch.stack([losses.diff(dim=1).flatten(), expected.diff(dim=1).flatten()])
    bar = {"at_least": 0.99} if way == "kernel" else {}
    yield {"name": f"correlation of L+ - L- by {way}, eps 2^-10", "figure": float(torch.corrcoef(pair)[0, 1]), **bar}


class _Losses:
    """A population of known losses: what is left of a step is the update."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        return torch.linspace(1, 2, 2 * len(seeds), dtype=torch.float64).view(-1, 2)


def step(device: str, way: str, name: str) -> Iterator[Figure]:
    """Time and peak memory, in as much memory as there is, and then in no more than the paper took: the rest is held
    meanwhile, so that chunks of probes are those of a smaller GPU."""
    for limit in (None, SIZES[name][1]) if device == "cuda" else (None,):  # libraries are loaded first
        yield from _step(device, way, name, limit)


def _step(device: str, way: str, name: str, limit: float | None) -> Iterator[Figure]:
    model, batch, seeds = _setting(device, name, way, rehearsed=device == "cpu")
    optimizer = zo.optim.CDRGE(model.parameters(), lr=_EPS, eps=_EPS, probes=len(seeds))
    optimizer.step(_Losses())  # rounds theta to its grid, once for all
    population, some = model.population(*batch, precision=WAYS[way]), seeds[: SIZES[name][0]]
    calls: dict[str, Callable[[], object]] = {"step": lambda: optimizer.step(population)}
    what = f"step of {name} by {way}" + ("" if limit is None else f", within {limit} GB")
    if len(some) < len(seeds):
        what += f", scaled from {len(some)} probes"
        calls["step"] = lambda: optimizer.step(_Losses())
        calls["forward"] = lambda: population.population_loss(some, _EPS)
    held = _hold_all_but(limit)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms = {call: median(times) for call, times in in_turns(device, calls, rounds=3).items()}
    seconds = (ms["step"] + ms.get("forward", 0.0) * len(seeds) / len(some)) / 1e3
    yield {"name": what, "figure": seconds, "unit": "s", "at_most": limit and SIZES[name][2]}
    if device == "cuda":
        peak = (torch.cuda.max_memory_allocated() - held.numel()) / 1e9
        yield {"name": f"peak memory of the {what}", "figure": peak, "unit": "GB", "at_most": limit}


def _hold_all_but(gigabytes: float | None) -> Tensor:
    """Memory, such that no more than `gigabytes` are left to what is allocated already and to what comes."""
    if gigabytes is None:
        return torch.empty(0, dtype=torch.int8)
    gc.collect()
    torch.cuda.empty_cache()
    left = int(gigabytes * 1e9) - torch.cuda.memory_allocated()
    return torch.empty(max(0, torch.cuda.mem_get_info()[0] - max(0, left)), dtype=torch.int8, device="cuda")
