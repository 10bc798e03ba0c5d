"""Figure 5: probes on a sphere and the direction they give, and how good that direction is in many dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import zo_kernels as zo
from zo_kernels.estimators import Population
from zo_kernels.models import LSTM
from zo_kernels.philox import probe_seeds

from .options import Options
from .pages import table
from .trials import Trials

SCALES = (1.0, 2.0, 4.0)
"""Of the quadratic sum of scale * x^2 / 2 on the sphere."""

PLACE, EPS, SPHERE_PROBES = (1.0, -0.6, 0.4), 0.3, 8
DIMENSIONS = {"quadratic, d = 100": 100, "quadratic, d = 10,000": 10_000}
MODELS = {"LSTM": (8, 8, 16), "LSTM, hidden size 64": (27, 64, 64)}
"""Vocabulary, embedding and hidden size; the losses are those of 8 random sequences of 8 tokens."""

PROBES = (1, 4, 16, 64, 256, 1024, 4096)
SEEDS = 8


def measure(trials: Trials, options: Options) -> None:
    trials.run({"part": "sphere", "probes": SPHERE_PROBES, "eps": EPS}, _sphere)
    for name in list(DIMENSIONS)[: 1 if options.quick else None] + list(MODELS)[: 1 if options.quick else None]:
        for probes in PROBES[:4] if options.quick else PROBES:
            seeds = 2 if options.quick else SEEDS
            settings = {"part": "cosine", "loss": name, "probes": probes, "seeds": seeds}
            trials.run(settings, partial(_cosines, name, probes, seeds))


def _quadratic(scales: Tensor, parameter: Tensor) -> Tensor:
    return (scales * parameter.double() ** 2).sum() / 2


def _loss(place: Tensor) -> Tensor:
    return (torch.tensor(SCALES, dtype=place.dtype) * place**2).sum() / 2


def _sphere() -> dict[str, Any]:
    """In three dimensions, in float64: the corners that probes reach, their losses, and the estimate from them."""
    place = torch.tensor(PLACE, dtype=torch.float64)
    corners, estimate = [], torch.zeros(3, dtype=torch.float64)
    for seed in probe_seeds(0, 0, SPHERE_PROBES):
        probe = zo.ops.apply_probe_(torch.zeros(3), 1.0, int(seed)).double()
        above, below = _loss(place + EPS * probe), _loss(place - EPS * probe)
        estimate += (above - below) / (2 * EPS * SPHERE_PROBES) * probe
        corners += [[*probe.tolist(), float(above)], [*(-probe).tolist(), float(below)]]
    gradient = torch.tensor(SCALES, dtype=torch.float64) * place
    cosine = torch.nn.functional.cosine_similarity(estimate, gradient, dim=0)
    return {
        "corners": sorted({tuple(round(x, 6) for x in corner) for corner in corners}),
        "estimate": estimate.tolist(),
        "gradient": gradient.tolist(),
        "cosine": round(float(cosine), 4),
    }


def _cosines(name: str, probes: int, seeds: int) -> dict[str, Any]:
    """Cosines of estimates, from the losses that an optimizer measures, with the gradient of autograd."""
    found = [_cosine(name, probes, seed) for seed in range(seeds)]
    cosines = [cosine for cosine, _ in found]
    return {
        "parameters": found[0][1],
        "mean": round(fmean(cosines), 5),
        "deviation": round(stdev(cosines), 5),
        "expected": round(math.sqrt(probes / (probes + found[0][1])), 5),
    }


def _cosine(name: str, probes: int, seed: int) -> tuple[float, int]:
    loss: Callable[[], Tensor]
    population: Callable[[], Tensor] | Population
    random = torch.Generator().manual_seed(seed)
    if name in DIMENSIONS:
        parameters = [torch.nn.Parameter(torch.randn(DIMENSIONS[name], generator=random))]
        scales = torch.linspace(0.5, 1.5, DIMENSIONS[name])
        loss = population = partial(_quadratic, scales, parameters[0])
    else:
        model = LSTM(*MODELS[name], seed=seed)
        parameters = list(model.parameters())
        batch = torch.randint(MODELS[name][0], (2, 8, 8), generator=random)
        loss, population = partial(model.loss, *batch), model.population(*batch)
    optimizer = zo.optim.CDRGE(parameters, lr=1.0, eps=1e-3, probes=probes, seed=seed, mode="shadow", check_every=0)
    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss(), parameters)]).double()
    before = torch.cat([each.detach().flatten().double() for each in parameters])
    optimizer.step(population)
    estimate = before - torch.cat([each.detach().flatten().double() for each in parameters])
    return float(torch.nn.functional.cosine_similarity(estimate, gradient, dim=0)), len(gradient)


def draw(trials: Trials, path: Path) -> bool:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    sphere = figure.add_subplot(1, 2, 1, projection="3d")
    for trial in trials.select(part="sphere"):
        _draw_sphere(figure, sphere, trial["found"])
    axis = figure.add_subplot(1, 2, 2)
    names = list(dict.fromkeys(trial["settings"]["loss"] for trial in trials.select(part="cosine")))
    for name, color in zip(names, ("#1f77b4", "#2ca02c", "#d62728", "#9467bd"), strict=False):
        some = trials.select(part="cosine", loss=name)
        probes = [trial["settings"]["probes"] for trial in some]
        d = some[0]["found"]["parameters"]
        means, deviations = ([trial["found"][key] for trial in some] for key in ("mean", "deviation"))
        axis.errorbar(
            probes, means, deviations, fmt="o", markersize=4, color=color, label=f"{name.split(',')[0]}, d = {d:,}"
        )
        n = np.geomspace(1, max(probes))
        axis.plot(n, np.sqrt(n / (n + d)), color=color, linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="probes n", ylim=(3e-3, 1.3))
    axis.set_title("cosine of estimate and gradient; lines: sqrt(n/(n + d))", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return True


def _draw_sphere(figure: Figure, axis: Any, found: dict[str, Any]) -> None:
    corners = np.array(found["corners"])
    u, v = np.mgrid[0 : 2 * math.pi : 30j, 0 : math.pi : 16j]
    radius = math.sqrt(3)
    ball = (radius * np.cos(u) * np.sin(v), radius * np.sin(u) * np.sin(v), radius * np.cos(v))
    axis.plot_wireframe(*ball, color="#dfe3e8", linewidth=0.5)
    points = axis.scatter(*corners[:, :3].T, c=corners[:, 3], s=70, depthshade=False, cmap="viridis")
    for key, color in (("estimate", "#d62728"), ("gradient", "#6b6b6b")):
        arrow = -np.array(found[key])
        axis.quiver(0, 0, 0, *(radius * arrow / np.linalg.norm(arrow)), color=color, label=f"minus the {key}")
    figure.colorbar(points, ax=axis, shrink=0.6, label="loss")
    axis.set(title="theta ± eps p", xticks=[], yticks=[], zticks=[])
    axis.view_init(elev=15, azim=30)
    axis.legend(fontsize=8, frameon=False)


def tables(trials: Trials) -> str:
    names = list(dict.fromkeys(trial["settings"]["loss"] for trial in trials.select(part="cosine")))
    counts = sorted({trial["settings"]["probes"] for trial in trials.select(part="cosine")})
    rows = []
    for name in names:
        some = {trial["settings"]["probes"]: trial["found"] for trial in trials.select(part="cosine", loss=name)}
        first = next(iter(some.values()))["parameters"]
        cells = [f"{some[n]['mean']:.3f} ({some[n]['expected']:.3f})" if n in some else "" for n in counts]
        rows.append([name.split(",")[0], f"{first:,}", *cells])
    return table(["loss", "d", *(f"n = {n}" for n in counts)], rows)
