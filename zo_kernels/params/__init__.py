"""Numbers the elements of the trainable parameters in the flat parameter space. The parameters stay where they are."""

from .grid import Grid
from .layout import Slot
from .space import ParameterSpace, flat_offsets

__all__ = ["Grid", "ParameterSpace", "Slot", "flat_offsets"]
