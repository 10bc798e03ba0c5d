"""Tasks to train on, by name. A task is one file with one subclass of `Task`, and one line in `TASKS`."""

from .base import Batch, BatchSets, Score, Task, score
from .copy import Copy
from .text import Text

TASKS: dict[str, type[Task]] = {"copy": Copy, "text": Text}
"""Every task by the name that `--task` takes."""

__all__ = ["TASKS", "Batch", "BatchSets", "Copy", "Score", "Task", "Text", "score"]
