"""Imports what a name stands for. Every failure is a ValueError of one sentence."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UsageError, first_line

T = TypeVar("T")

ALLOW_IMPORT = "ZO_KERNELS_ALLOW_IMPORT"
"""The variable of the environment that is 1 where the code that a run folder names may be imported."""

_IMPORT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_import(name: str) -> bool:
    """Whether a name has the form package.module:Name."""
    return _IMPORT.fullmatch(name) is not None


def entry_names(group: str) -> list[str]:
    """The names that installed packages give to the entry points of a group, in order."""
    return sorted(_entries(group))


def find_class(name: str, base: type[Any], group: str) -> type[Any] | None:
    """Returns the subclass of `base` with a name, or None if the name is of neither form.

    name: package.module:Class, which is imported; or that of an entry point of the group.

    Raises ValueError if it can't be imported, or is no subclass of `base`.
    """
    found = _find(name, group)
    if found is None:
        return None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name} is not a subclass of {base.__name__}: name a class that is")
    return found


def find_function(name: str, group: str) -> Callable[..., Any] | None:
    """Returns the function with a name, as `find_class` returns a class. Raises ValueError if it can't be imported."""
    found = _find(name, group)
    if found is not None and not callable(found):
        raise ValueError(f"{name} is not a function: name one that is")
    return found


def call(name: str, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Calls what was found under a name. A ValueError is its own; any other error becomes one that tells the name."""
    try:
        return function(*arguments, **keywords)
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(_explain(f"{name} can't be built", error)) from error


def require_allowed(names: Sequence[str], run: Path, allowed: bool) -> None:
    """Raises UsageError if a run folder names code to import, and neither the caller nor the environment allows it.

    Importing runs the code, and a folder from someone else may name any.
    """
    if names and not allowed and os.environ.get(ALLOW_IMPORT) != "1":
        raise UsageError(
            f"{run} names code outside zo_kernels ({', '.join(names)}), which would run: if you trust it, give "
            f"--allow-import or set {ALLOW_IMPORT}=1"
        )


def _find(name: str, group: str) -> Any:
    if is_import(name):
        return _import(name)
    entry = _entries(group).get(name)
    return None if entry is None else _import(entry.value, f"{name} ({entry.value})")


def _entries(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _import(name: str, shown: str | None = None) -> Any:
    shown = shown or name
    module, _, attribute = name.partition(":")
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name}, which {shown} needs: start python -m zo_kernels... "
                "in its folder, set PYTHONPATH, or install it"
            ) from error
        raise ValueError(_explain(f"{shown} can't be imported", error)) from error
    except (Exception, SystemExit) as error:
        raise ValueError(_explain(f"{shown} can't be imported", error)) from error
    if not hasattr(imported, attribute):
        raise ValueError(f"the module {module} has no {attribute or 'name after a colon'}, which {shown} needs")
    return getattr(imported, attribute)


def _explain(what: str, error: BaseException) -> str:
    if os.environ.get("ZO_KERNELS_TRACEBACK"):
        traceback.print_exception(error, file=sys.stderr)
        return f"{what}, for it raised {type(error).__name__} ({first_line(error)})"
    return f"{what}, for it raised {type(error).__name__} ({first_line(error)}): ZO_KERNELS_TRACEBACK=1 shows where"
