"""What the package's command lines share."""

from __future__ import annotations

from typing import Any

import tyro

EXIT_DONE, EXIT_ERROR = 0, 2
"""Exit codes: everything was done, or a message on stderr says why not."""


def option(metavar: str, hint: str | None = None) -> Any:
    """Annotates a field with how --help shows its flag.

    metavar: what stands for the value. hint: what stands, in parentheses, for the default; None shows the default.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=None if hint is None else f"({hint})")


def choice(names: Any, hint: str | None = None) -> Any:
    """Annotates a field whose value is one of these names. hint: as for `option`."""
    return option("{" + ",".join(names) + "}", hint)


def flag(field: str) -> str:
    """Spells a field as a flag of the command line."""
    return "--" + field.replace("_", "-")
