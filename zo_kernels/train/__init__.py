"""Training runs, from the command line (`python -m zo_kernels.train`) and from Python.

result = run(default_config("copy", steps=200))
print(result.final["validation_loss"], result.folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import TrainResult, run
    from .config import TrainConfig
    from .defaults import default_config

__all__ = ["TrainConfig", "TrainResult", "default_config", "run"]

_MODULES = {"TrainConfig": "config", "TrainResult": "api", "default_config": "defaults", "run": "api"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is first used: the trainer needs rich and matplotlib, a config neither."""
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
