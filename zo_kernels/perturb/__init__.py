"""Moves the parameters to theta + alpha p and exactly back, and updates theta.

There are three ways, and a parameter goes one of them. `InPlace` perturbs the parameter itself; it needs float32 or
float64 on a grid, and probes of -1, 0 and 1. `Shadow` keeps theta in a second copy and writes cast(theta + alpha p)
into the parameter; it works for any dtype and probe. `Streamed` gives torch functions perturbed copies in place of the
parameter, which is theta; it takes no memory beside that, but rounds the updates of 16-bit parameters. `Perturbation`
decides which, and steps all together.
"""

from .base import DenseUpdate, Displacement, GroupUpdate
from .inplace import InPlace
from .perturbation import Perturbation
from .shadow import Shadow
from .streamed import Streamed

__all__ = ["DenseUpdate", "Displacement", "GroupUpdate", "InPlace", "Perturbation", "Shadow", "Streamed"]
