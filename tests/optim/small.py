"""A small model, its loss, and optimizers of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from zo_kernels.estimators import ESTIMATORS
from zo_kernels.optim import ZeroOrder
from zo_kernels.optim.dense import DENSE_RULES
from zo_kernels.transforms import clip_norm, momentum

DISTRIBUTIONS = ["rademacher", "normal", "uniform", "sparse-4"]


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def closure_of(model: nn.Module) -> Callable[[], torch.Tensor]:
    x = torch.linspace(-1, 1, 35).view(5, 7)
    return lambda: (model(x.to(next(model.parameters()).dtype)).double() - 1.0).square().mean()


def built(**options: object) -> tuple[nn.Module, ZeroOrder]:
    model = small_model()
    return model, ZeroOrder(model.parameters(), **{"lr": 2**-6, "eps": 2**-7, "probes": 6, "seed": 3, **options})  # type: ignore[arg-type]


KINDS = [
    *(
        {"estimator": estimator(), "distribution": d}
        for estimator, d in itertools.product(ESTIMATORS.values(), DISTRIBUTIONS)
    ),
    *({"dense": rule()} for rule in DENSE_RULES.values()),
    {"transforms": [clip_norm(0.5), momentum(0.9, 3)], "weight_decay": 0.25},
    {"dense": DENSE_RULES["adam"](), "distribution": "normal", "weight_decay": 0.25},
    {"mode": "shadow", "dense": DENSE_RULES["adam"]()},
    {"mode": "shadow", "estimator": ESTIMATORS["2-spsa"]()},
]
