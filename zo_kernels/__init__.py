"""zo_kernels: zero-order training of neural networks with fused Rademacher-probe kernels.

import torch, zo_kernels as zo
opt = zo.optim.CDRGE(model.parameters(), lr=2**-6, probes=96, seed=0)
loss = opt.step(lambda: model.loss(tokens, targets))
"""

from importlib.metadata import PackageNotFoundError, version

import torch  # noqa: F401  (first: the CPU kernels run on the threads of its OpenMP runtime)

from . import (
    arena,
    dense,
    distributed,
    distributions,
    errors,
    estimators,
    models,
    ops,
    optim,
    philox,
    process_group,
    sharded,
    tasks,
    transforms,
)
from .backends import backend, set_backend
from .environment import show_config
from .gradient import SeedGradient

try:
    __version__ = version("zo_kernels")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "SeedGradient",
    "arena",
    "backend",
    "dense",
    "distributed",
    "distributions",
    "errors",
    "estimators",
    "models",
    "ops",
    "optim",
    "philox",
    "process_group",
    "set_backend",
    "sharded",
    "show_config",
    "tasks",
    "transforms",
]
