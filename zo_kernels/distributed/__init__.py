"""Training in several processes: replicas, which exchange only losses, and the process group of a launch."""

from .launch import is_launched
from .process_group import process_group
from .replicas import Replicas

__all__ = ["Replicas", "is_launched", "process_group"]
