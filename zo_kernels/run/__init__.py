"""The files of a run, from which it can continue: its folder, its journal and its checkpoints."""

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .folder import RunFolder
from .journal import Journal, Row

__all__ = ["Checkpoint", "Journal", "Row", "RunFolder", "load_checkpoint", "save_checkpoint"]
