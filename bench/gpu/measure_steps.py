"""Table 1 of the paper: time and peak memory of an optimizer step of 96 probes, on one GPU."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.estimators import Population
from zo_kernels.models import FlashLM, RecurrentLM
from zo_kernels.philox import probe_seeds

from .sizes import ON, Size
from .timing import in_turns
from .ways import WAYS, Way, batch_of, flash_backend

_EPS = 2.0**-7


class _Losses:
    """A population of known losses: what is left of a step is the update."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        return torch.linspace(1, 2, 2 * len(seeds), dtype=torch.float64).view(-1, 2)


def step(device: str, name: str, way: str) -> dict[str, Any]:
    """Of the model `name`, in as much memory as there is, and in no more than the paper took.

    For the second the rest of the GPU's memory is held meanwhile, so that chunks of probes are those of a smaller GPU.
    Its figures count, unless it does not fit.
    """
    size, chosen = ON[device][name], WAYS[way]
    runs: dict[str, dict[str, Any]] = {}
    for limit in (None, size.paper_gb) if device == "cuda" else (None,):  # first what loads libraries into the memory
        try:
            run = _run(size, chosen, device, limit)
        except torch.OutOfMemoryError:
            run = {"left": "it does not fit"}
        except RuntimeError as error:  # what libraries say who can't allocate
            if limit is None:
                raise
            run = {"left": str(error).strip().splitlines()[0]}
        runs["as it comes" if limit is None else f"within {limit} GB"] = run
        gc.collect()
    fitting = [run for run in runs.values() if "seconds" in run]
    if not fitting:
        raise torch.OutOfMemoryError("a step does not fit this GPU")
    figures = {key: fitting[-1][key] for key in ("seconds", "peak GB") if key in fitting[-1]}
    note = f"{way}, scaled from {few} probes" if (few := fitting[-1].get("scaled from")) else way
    return {"figures": figures, "parameters": size.parameters, "runs": runs, "short": note}


def _run(size: Size, way: Way, device: str, limit: float | None) -> dict[str, Any]:
    """{"seconds", "peak GB", "note", "scaled from", "by"}, in at most `limit` GB."""
    model = way.model(size, device)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == size.parameters, f"{parameters} parameters, not {size.parameters}"
    optimizer = zo.optim.CDRGE(model.parameters(), lr=_EPS, eps=_EPS, probes=size.probes)
    optimizer.step(_Losses())  # rounds theta to its grid, once for all
    held = _hold_all_but(limit)
    with way.context():
        run = _timed(model, optimizer, way, size, device)
    if "peak GB" in run:
        run["peak GB"] = round(run["peak GB"] - held.numel() / 1e9, 3)
    if isinstance(model, FlashLM):
        run["by"] = flash_backend(model, way.precision)
    return run


def _hold_all_but(gigabytes: float | None) -> Tensor:
    """Memory, such that no more than `gigabytes` are left to what is allocated already and to what comes."""
    if gigabytes is None:
        return torch.empty(0, dtype=torch.int8)
    torch.cuda.empty_cache()
    left = int(gigabytes * 1e9) - torch.cuda.memory_allocated()
    return torch.empty(max(0, torch.cuda.mem_get_info()[0] - max(0, left)), dtype=torch.int8, device="cuda")


def _timed(
    model: RecurrentLM | FlashLM, optimizer: zo.optim.CDRGE, way: Way, size: Size, device: str
) -> dict[str, Any]:
    """Of whole steps, or of the update and a part of the forwards, scaled."""
    population = model.population(*batch_of(size, device), precision=way.precision)
    few, rounds = size.measured_probes, 3
    if few == size.probes:
        calls: dict[str, Callable[[], object]] = {"step": lambda: optimizer.step(population)}
    else:
        seeds, rounds = torch.from_numpy(probe_seeds(0, 0, few)), 2
        calls = {"forward": lambda: _forward(population, seeds), "step": lambda: optimizer.step(_Losses())}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = {call: statistics.median(seconds) for call, seconds in in_turns(device, calls, rounds=rounds).items()}
    total = times["step"] + times.get("forward", 0.0) * size.probes / few
    run: dict[str, Any] = {"seconds": float(f"{total:.4g}")}
    if device == "cuda":
        run["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    if few != size.probes:
        run["note"] = f"forwards scaled from {few} probes to {size.probes}; the update is that of {size.probes}"
        run["scaled from"] = few
    return run


def _forward(population: Population, seeds: Tensor) -> Tensor:
    return population.population_loss(seeds, _EPS)
