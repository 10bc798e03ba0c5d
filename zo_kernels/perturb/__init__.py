"""Moves the parameters to theta + alpha p and exactly back, and updates theta.

There are two implementations of `Perturbation`. InPlace perturbs the parameters themselves; it needs float32 or float64
parameters on a grid, and probes of -1, 0 and 1. Shadow keeps theta in a second copy and writes cast(theta + alpha p)
into the parameters; it works for any dtype and probe. Both see the parameters as consecutive *segments* of an arena,
one per parameter group, each with its own alpha.
"""

from .base import DenseUpdate, Displacement, GroupUpdate, Perturbation, Segment
from .inplace import InPlace
from .shadow import Shadow

__all__ = ["DenseUpdate", "Displacement", "GroupUpdate", "InPlace", "Perturbation", "Segment", "Shadow"]
