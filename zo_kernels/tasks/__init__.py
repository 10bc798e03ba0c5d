"""Tasks to train on. Each task is one file with a subclass of `Task`, and one line in `TASKS`."""

from ..extensions import entry_names, find_class
from .add import Add
from .base import Batch, BatchSets, Score, Task, score
from .copy import Copy
from .overfit import Overfit
from .owt import OpenWebText
from .pairs import Pairs
from .ptb import PennTreebank
from .repeat_copy import RepeatCopy
from .reverse import Reverse
from .rolling_sum import RollingSum
from .series import Series
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
    "pairs": Pairs,
    "series": Series,
}
"""Every task by the name that `--task` takes."""


def reads_numbers(name: str) -> bool:
    """Whether a task of that name in `TASKS` is about numbers instead of tokens."""
    return name in TASKS and TASKS[name].reads_numbers


def find_task(name: str) -> type[Task]:
    """Returns a task of `TASKS`, of an entry point of the group zo_kernels.tasks, or package.module:Class.

    Raises ValueError for an unknown name, and for one that can't be imported or is no task.
    """
    found = TASKS.get(name) or find_class(name, Task, "zo_kernels.tasks")
    if found is None:
        raise ValueError(
            f"unknown task {name!r}: choose one of {', '.join([*TASKS, *entry_names('zo_kernels.tasks')])}"
        )
    return found


__all__ = [
    "TASKS",
    "Add",
    "Batch",
    "BatchSets",
    "Copy",
    "OpenWebText",
    "Overfit",
    "Pairs",
    "PennTreebank",
    "RepeatCopy",
    "Reverse",
    "RollingSum",
    "Score",
    "Series",
    "Sort",
    "Task",
    "Text",
    "find_task",
    "reads_numbers",
    "score",
]
