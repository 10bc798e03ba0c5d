"""Moves the parameters to theta + alpha p and exactly back, and updates theta.

There are two ways, and a parameter goes one of them. `InPlace` perturbs the parameter itself; it needs float32 or
float64 on a grid, and probes of -1, 0 and 1. `Shadow` keeps theta in a second copy and writes cast(theta + alpha p)
into the parameter; it works for any dtype and probe. `Perturbation` decides which, and steps both together.
"""

from .base import DenseUpdate, Displacement, GroupUpdate
from .inplace import InPlace
from .perturbation import Perturbation
from .shadow import Shadow

__all__ = ["DenseUpdate", "Displacement", "GroupUpdate", "InPlace", "Perturbation", "Shadow"]
