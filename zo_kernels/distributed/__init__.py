"""Many processes: replicas that exchange losses only, and the process group that a launcher starts."""

from .process_group import is_launched, process_group
from .replicas import Replicas

__all__ = ["Replicas", "is_launched", "process_group"]
