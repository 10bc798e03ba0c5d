"""The parameters of any step of a run, rebuilt from its journal: `python -m zo_kernels.replay`."""

from .weights import Replayed, replay

__all__ = ["Replayed", "replay"]
