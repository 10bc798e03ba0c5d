"""Moving theta to a probe and back, exactly; and the update. Two ways with one interface.

InPlace perturbs the parameters themselves (float32 or float64, on a grid, by probes of -1, 0 and 1). Shadow keeps theta
aside and writes cast(theta + alpha p) into the parameters (any dtype and probe, a second copy of the parameters). Both
see the parameters as consecutive *segments* of an arena, one per parameter group, each with its own alpha.
"""

from .base import DenseUpdate, Displacement, GroupUpdate, Perturbation, Segment
from .inplace import InPlace
from .shadow import Shadow

__all__ = ["DenseUpdate", "Displacement", "GroupUpdate", "InPlace", "Perturbation", "Segment", "Shadow"]
