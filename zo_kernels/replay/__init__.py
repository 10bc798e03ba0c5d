"""Rebuilds the parameters of any step of a run from its journal: `python -m zo_kernels.replay`.

weights = replay("runs/copy", 412).weights
"""

from .weights import Replayed, replay

__all__ = ["Replayed", "replay"]
