"""What the command lines of the package share."""

from __future__ import annotations

from typing import Any

import tyro

EXIT_DONE, EXIT_ERROR = 0, 2
"""Exit codes: everything was done; or it could not be, and the message on stderr says why."""


def cli_value(metavar: str, default: str | None = None) -> Any:
    """How --help shows a flag's value, and what it says of the default where the default does not say it itself."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default)


def flag(field: str) -> str:
    """The command line's spelling of a field."""
    return "--" + field.replace("_", "-")
