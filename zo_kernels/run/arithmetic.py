"""arithmetic.json: how the losses of a run are rounded, and from which step on. A run goes on as it began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .files import read_json, write_text

FILE = "arithmetic.json"
"""In a run folder: a list of [first step, arithmetic], with a new entry wherever the arithmetic changed."""

KERNEL_VERSION = 1
"""To be raised whenever the population kernels give other bits."""

VERSIONS_OF_ISA = {"avx2": 2}
"""Instead of KERNEL_VERSION, where the bits of one instruction set changed alone."""

BATCHED_VERSION = 2
"""Likewise for the forward of recurrent models in torch (backends/recurrent/batched.py). Version 1 was not recorded."""

MEMORY_KERNEL_VERSION = 1
"""Likewise for the kernels of models with a memory (csrc/cpu/dnc)."""

ACTIVITY_KERNEL_VERSION = 1
"""Likewise for activity perturbation (csrc/cpu/activity)."""

Arithmetic = dict[str, str]

NAMES = {
    "backend": "the backend",
    "isa": "the instruction set",
    "precision": "the precision",
    "forward": "the forward pass",
    "threads": "the number of torch's threads",
    "zo_kernels": "the version of zo_kernels",
}
"""What a message calls each entry of an arithmetic."""


def check_arithmetic(run: Path, now: Arithmetic, remedy: str, *, unrecorded: Arithmetic | None = None) -> None:
    """Raises UsageError if the steps of a run so far were computed otherwise than this process would go on.

    remedy: how to go on all the same, for the message. unrecorded: that of runs of older versions, which have no
    record; None lets them go on. The version of zo_kernels may differ: that of the forward passes tells whether bits
    do.
    """
    entries = _read(run)
    then = entries[-1][1] if entries else unrecorded
    if then is None:
        return
    changed = [
        f"{NAMES[key]} was {then.get(key, 'unknown')} and is {now[key]} here"
        for key in now
        if key != "zo_kernels" and then.get(key) != now[key]
    ]
    if changed:
        raise UsageError(
            f"{run} would go on with losses that are rounded differently, for {', '.join(changed)}: continue it as it "
            f"began, or {remedy}"
        )


def record_arithmetic(run: Path, step: int, now: Arithmetic) -> None:
    """Records how the steps of a run from `step` on are computed, if that is not known yet. Raises OSError."""
    entries = [entry for entry in _read(run) if entry[0] < step]
    if not entries or entries[-1][1] != now:
        entries.append((step, now))
    write_text(run / FILE, json.dumps(entries, indent=2) + "\n")


def kernel_version(isa: str) -> int:
    """The version of the population kernels on an instruction set."""
    return VERSIONS_OF_ISA.get(isa, KERNEL_VERSION)


def package_version() -> str:
    """The version of zo_kernels."""
    import zo_kernels  # the package is imported before any run

    return zo_kernels.__version__


def _read(run: Path) -> list[tuple[int, Arithmetic]]:
    """The entries of a run's file; none if there is no file. Raises UsageError if it is damaged."""
    path = run / FILE
    try:
        entries: Any = read_json(path, 1 << 20)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read ({error}): restore it, or remove it to do without its check") from error
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise UsageError(f"{path} is not a record of arithmetic: restore it, or remove it to do without its check")
    return [(step, arithmetic) for step, arithmetic in entries]


def _is_entry(entry: Any) -> bool:
    match entry:
        case [int(), {**values}]:
            return all(isinstance(value, str) for value in values.values())
    return False
