"""Populations and whole steps: Table 1 of arXiv 2505.17852, the usual code, and what is left of the precision."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Generator, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.backends.pieces import Pieces
from zo_kernels.errors import first_line
from zo_kernels.models import FlashLM, RecurrentLM
from zo_kernels.models.language import ModelPopulation
from zo_kernels.models.presets import PRESETS
from zo_kernels.ops.lists import apply_probe_list
from zo_kernels.philox import probe_seeds

from .timing import Figure, compare, in_turns

_EPS = 2.0**-7


class Size(NamedTuple):
    """paper: GB and seconds of a step of 96 probes there, as far as known. goal: the same, wanted of "bfloat16".

    most: by way, probes of which the forward is measured; more are scaled from it, for it is linear in them.
    rounds: of each measurement.
    """

    paper: tuple[float, float | None]
    goal: tuple[float, float]
    most: dict[str, int]
    rounds: int


SIZES = {
    "100k": Size((0.5, 5.7), (0.5, 2.5e-3), {}, 10),
    "1M": Size((1.0, None), (1.0, 12e-3), {}, 10),
    "10M": Size((4.0, None), (4.0, 0.1), {"float32": 96, "flash-bfloat16": 96}, 3),
    "100M": Size((25.3, None), (8.0, 1.1), {"bfloat16": 96, "float32": 8, "flash-bfloat16": 8}, 3),
    "1.1B": Size((39.5, 145.0), (39.0, 9.0), {"bfloat16": 96, "float32": 4}, 2),
}
"""The LSTMs of Table 1 of arXiv 2505.17852."""

FASTER = {"100k": 100, "1.1B": 10}
"""How many times as fast as the paper a step in float32 is to be."""

PROBES = 96, 512

WAYS = {"bfloat16": "bfloat16", "float32": "float32", "flash": "float32", "flash-bfloat16": "bfloat16"}
"""Ways to evaluate a population, with their precision: what `recurrent_nats` chooses for bfloat16; in torch, with
members as a dimension of the batch (in a rehearsal, the CPU's kernel); FlashLM."""


class Refused(Exception):
    """What a model says that does not compute in the precision it was asked for."""


def _setting(
    device: str, name: str, way: str, batch_size: int = 1024, rehearsed: bool = False
) -> tuple[RecurrentLM | FlashLM, tuple[Tensor, Tensor], Tensor]:
    """An LSTM of the paper's, its parameters drawn on the device; its batch, and a step's seeds."""
    preset, time, probes = PRESETS[f"paper-lstm-{name.lower()}"], 10, PROBES[-1]
    sizes = 100, 100, preset.hidden_size, preset.num_heads
    if rehearsed:
        sizes, batch_size, time = (11, 5, 40, 2), 4, 3
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
    seeds = seeds[: PROBES[0]]
    rival, few = _setting(device, "100k", "flash", rehearsed=device == "cpu")[0], seeds[:4].tolist()
    ours, space = _population(model, batch, way), zo.params.ParameterSpace.of(rival)
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
    losses = _population(model.to(device), (tokens, targets), way).population_loss(seeds, eps)
    pair = torch.stack([losses.diff(dim=1).flatten(), expected.diff(dim=1).flatten()])
    bar = {"at_least": 0.99} if way == "bfloat16" else {}
    yield {"name": f"correlation of L+ - L- by {way}, eps 2^-10", "figure": float(torch.corrcoef(pair)[0, 1]), **bar}


class _Losses:
    """A population of known losses: what is left of a step is the update."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        return torch.linspace(1, 2, 2 * len(seeds), dtype=torch.float64).view(-1, 2)


def _population(model: RecurrentLM | FlashLM, batch: tuple[Tensor, Tensor], way: str) -> ModelPopulation:
    """The losses of this model, after those of one probe, which compile what there is to compile."""
    population = model.population(*batch, precision=WAYS[way])
    try:
        population.population_loss(torch.zeros(1, dtype=torch.int64), _EPS)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) or "precision" in str(error):
            raise Refused(first_line(error)) from error
        raise
    return population


def step(device: str, way: str, name: str) -> Iterator[Figure]:
    """Time and peak memory of steps of 96 and 512 probes, in as much memory as there is.

    If that takes more than is wanted, the same again in no more: the rest is held meanwhile, so that chunks of probes
    are those of a smaller GPU. The bars apply to what fits.
    """
    size = SIZES[name]
    wanted = size.goal if way == "bfloat16" else (size.paper[0], None)
    if way == "float32" and name in FASTER and size.paper[1]:
        wanted = size.paper[0], size.paper[1] / FASTER[name]
    model, batch, seeds = _setting(device, name, way, rehearsed=device == "cpu")
    population = _population(model, batch, way)
    for count in PROBES:
        update = zo.optim.CDRGE(model.parameters(), lr=_EPS, eps=_EPS, probes=count)
        update.step(_Losses())  # rounds theta to its grid, once for all
        bars = wanted if count == PROBES[0] else (wanted[0], None)
        some = seeds[: min(count, size.most.get(way, count))]
        what = f"step of {name} by {way}, {count} probes"
        peak = yield from _step(device, what, update, population, some, size.rounds, bars)
        if peak > wanted[0]:
            held = _hold_all_but(wanted[0])
            what += f", within {wanted[0]} GB"
            yield from _step(device, what, update, population, some, size.rounds, bars, held.numel())
            del held


def _step(
    device: str,
    what: str,
    optimizer: zo.optim.CDRGE,
    population: ModelPopulation,
    seeds: Tensor,
    rounds: int,
    bars: tuple[float, float | None],
    held_bytes: int = 0,
) -> Generator[Figure, None, float]:
    """Yields the time and the peak memory, and returns the latter in GB.

    seeds: of the probes that are measured. bars: GB and seconds. held_bytes: of memory that others may not have.
    """
    calls: dict[str, Callable[[], object]] = {"step": lambda: optimizer.step(population)}
    count = optimizer.probes
    if len(seeds) < count:
        what += f", scaled from {len(seeds)}"
        calls["step"] = lambda: optimizer.step(_Losses())
        calls["forward"] = lambda: population.population_loss(seeds, _EPS)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms = {call: median(times) for call, times in in_turns(device, calls, rounds, warm=rounds > 2).items()}
    seconds = (ms["step"] + ms.get("forward", 0.0) * count / len(seeds)) / 1e3
    peak = 0.0
    if device == "cuda":
        peak = (torch.cuda.max_memory_allocated() - held_bytes) / 1e9
    fits = peak <= bars[0]
    yield {"name": what, "figure": seconds, "unit": "s", "at_most": bars[1] if fits else None}
    if device == "cuda":
        yield {"name": f"peak memory of the {what}", "figure": peak, "unit": "GB", "at_most": bars[0] if fits else None}
    return peak


def _hold_all_but(gigabytes: float) -> Tensor:
    """Memory, such that no more than `gigabytes` are left to what is allocated already and to what comes."""
    gc.collect()
    torch.cuda.empty_cache()
    left = int(gigabytes * 1e9) - torch.cuda.memory_allocated()
    return torch.empty(max(0, torch.cuda.mem_get_info()[0] - max(0, left)), dtype=torch.int8, device="cuda")
