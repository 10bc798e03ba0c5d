"""Stores the trainable parameters and numbers their elements in the flat parameter space."""

from .arena import ParameterArena, flat_offsets
from .grid import Grid
from .layout import Arena, Segment, Slot
from .sharded import ShardedArena, arena_of

__all__ = ["Arena", "Grid", "ParameterArena", "Segment", "ShardedArena", "Slot", "arena_of", "flat_offsets"]
