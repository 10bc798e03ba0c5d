"""Tasks to train on. Each task is one file with a subclass of `Task`, and one line in `TASKS`."""

from .add import Add
from .base import Batch, BatchSets, Score, Task, score
from .copy import Copy
from .overfit import Overfit
from .owt import OpenWebText
from .ptb import PennTreebank
from .repeat_copy import RepeatCopy
from .reverse import Reverse
from .rolling_sum import RollingSum
from .sort import Sort
from .text import Text

TASKS: dict[str, type[Task]] = {
    "copy": Copy,
    "reverse": Reverse,
    "sort": Sort,
    "repeat-copy": RepeatCopy,
    "add": Add,
    "rolling-sum": RollingSum,
    "overfit": Overfit,
    "text": Text,
    "ptb": PennTreebank,
    "owt": OpenWebText,
}
"""Every task by the name that `--task` takes."""

__all__ = [
    "TASKS",
    "Add",
    "Batch",
    "BatchSets",
    "Copy",
    "OpenWebText",
    "Overfit",
    "PennTreebank",
    "RepeatCopy",
    "Reverse",
    "RollingSum",
    "Score",
    "Sort",
    "Task",
    "Text",
    "score",
]
