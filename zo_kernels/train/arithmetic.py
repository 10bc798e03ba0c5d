"""What decides about the bits of a run's losses besides its config, and when a run has to do with another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..backends import backend_for
from ..backends.cpu import _C
from ..backends.recurrent import population_kernel
from ..errors import UsageError
from ..models.build import has_memory
from ..models.cells import MODELS
from ..run.files import read_json, write_text
from ..tasks import reads_numbers
from .config import TrainConfig
from .device import choose_device

FILE = "arithmetic.json"
"""In a run folder: a list of [first step, arithmetic], with a new entry wherever the arithmetic changed."""

KERNEL_VERSION = 1
"""To be raised whenever the population kernels give other bits."""

VERSIONS_OF_ISA = {"avx2": 2}
"""Instead of KERNEL_VERSION, where the bits of one instruction set changed alone."""

MEMORY_KERNEL_VERSION = 1
"""Likewise for the kernels of models with a memory (csrc/cpu/dnc)."""

_MEMORY_KERNEL = "memory kernel"

Arithmetic = dict[str, str]


def arithmetic_of(config: TrainConfig) -> Arithmetic:
    """Describes the arithmetic of a run's forward passes in this process, where `compute_with` has set the backend.

    backend: Name of the backend in use. isa: The instruction set of the forward passes, or the compute capability of
    the GPU. precision: That of their products. forward: What computes the forward passes of steps: a population kernel,
    with the version of its bits, or torch. torch's own version counts only in the second case, since probes and updates
    have the same bits everywhere. Where one computes the losses and the other carries the states of a stateful run,
    both are named.
    zo_kernels: Its version.
    """
    device = choose_device(config).type
    backend = backend_for(device)
    in_kernels = config.solver == "zo" and config.distribution == "rademacher"
    is_fused = config.model in MODELS and not reads_numbers(config.task)
    has_kernel = in_kernels and is_fused
    in_torch = f"torch {torch.__version__}"
    if device == "cuda":
        isa = "sm_{}{}".format(*torch.cuda.get_device_capability())
        kernel = f"kernel {KERNEL_VERSION}, {in_torch}" if population_kernel.turned_on() else in_torch
    elif backend.name == "cpu" and _C is not None and has_kernel:
        isa = _C.active_isa()
        kernel = f"kernel {_version_of(isa)}"
    elif backend.name == "cpu" and _C is not None and in_kernels and has_memory(config.model):
        isa, has_kernel, kernel = _C.active_isa(), True, f"{_MEMORY_KERNEL} {MEMORY_KERNEL_VERSION}"
        if config.stateful:
            kernel += f", states of {in_torch}"
    else:
        isa, kernel = torch.backends.cpu.get_cpu_capability().lower(), in_torch
        if config.stateful and backend.name == "cpu" and _C is not None and is_fused:
            in_torch += f", states of kernel {_version_of(_C.active_isa())} on {_C.active_isa()}"
    return {
        "backend": backend.name,
        "isa": isa,
        "precision": config.precision,
        "forward": kernel if has_kernel else in_torch,
        "zo_kernels": _version(),
    }


def as_terms(config: TrainConfig) -> Arithmetic:
    """The arithmetic of this process, but for what is a flag, by the names that a message about ranks gives to it."""
    return {_NAMES[key]: value for key, value in arithmetic_of(config).items() if key != "precision"}


def check_arithmetic(run: Path, config: TrainConfig) -> None:
    """Raises UsageError if the steps of a run so far were computed otherwise than this process would go on.

    The version of zo_kernels may differ: that of the forward passes tells whether bits do. Runs of older versions have
    no record, and go on, but for models with a memory, which torch computed then.
    """
    entries = _read(run)
    if config.allow_other_arithmetic:
        return
    now = arithmetic_of(config)
    if entries:
        then = entries[-1][1]
    elif now["forward"].startswith(_MEMORY_KERNEL):
        then = {**now, "forward": "torch"}
    else:
        return
    changed = [
        f"{_NAMES[key]} was {then.get(key, 'unknown')} and is {now[key]} here"
        for key in now
        if key != "zo_kernels" and then.get(key) != now[key]
    ]
    if changed:
        raise UsageError(
            f"{run} would go on with losses that are rounded differently, for {', '.join(changed)}: continue it as it "
            "began, or give --allow-other-arithmetic"
        )


def record_arithmetic(run: Path, step: int, config: TrainConfig) -> None:
    """Records how the steps of a run from `step` on are computed, if that is not known yet. Raises OSError."""
    entries, now = [entry for entry in _read(run) if entry[0] < step], arithmetic_of(config)
    if not entries or entries[-1][1] != now:
        entries.append((step, now))
    write_text(run / FILE, json.dumps(entries, indent=2) + "\n")


_NAMES = {
    "backend": "the backend",
    "isa": "the instruction set",
    "precision": "the precision",
    "forward": "the forward pass",
    "zo_kernels": "the version of zo_kernels",
}


def _version_of(isa: str) -> int:
    return VERSIONS_OF_ISA.get(isa, KERNEL_VERSION)


def _version() -> str:
    import zo_kernels  # the package imports this module only when a run needs it

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
