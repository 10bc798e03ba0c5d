"""zo_kernels: zero-order training of neural networks with fused Rademacher-probe kernels.

import torch, zo_kernels as zo
opt = zo.optim.CDRGE(model.parameters(), lr=2**-6, probes=96, seed=0)
loss = opt.step(lambda: model.loss(tokens, targets))
"""

# ruff: noqa: E402  (the imports follow a call)

from .command_line import set_up_program

set_up_program()  # before the imports that take long

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch  # noqa: F401  (first: the CPU kernels run on the threads of its OpenMP runtime)

from . import (
    distributed,
    distributions,
    errors,
    estimators,
    models,
    ops,
    optim,
    params,
    philox,
    populations,
    tasks,
    transforms,
)
from .backends import backend, set_backend
from .environment import show_config
from .gradient import SeedGradient
from .populations import ModulePopulation

try:
    __version__ = version("zo_kernels")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "ModulePopulation",
    "SeedGradient",
    "backend",
    "distributed",
    "distributions",
    "errors",
    "estimators",
    "models",
    "ops",
    "optim",
    "params",
    "philox",
    "populations",
    "set_backend",
    "show_config",
    "tasks",
    "transforms",
]

_PROGRAMS = ("durable", "generate", "plot", "predict", "replay", "train")


def __getattr__(name: str) -> Any:
    """The programs are imported when they are first used: they need tyro, rich and matplotlib."""
    if name in _PROGRAMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
