"""Where a run is computed: the device, and why it was chosen."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch

from ..backends import backend, backend_for
from ..distributed.launch import read_local_world_size
from .config import TrainConfig
from .forward import is_flash


class Device(NamedTuple):
    """type: "cpu" or "cuda". reason: why `--device auto` chose it, in a few words; empty if it was asked for."""

    type: str
    reason: str = ""


def choose_device(config: TrainConfig) -> Device:
    """Returns the device that a config asks for. "auto" is cuda if a run can be computed there, else cpu.

    All processes of a launch on one machine choose alike: cuda takes a GPU for each of them. Raises UsageError if the
    launcher's number of processes makes no sense.
    """
    if config.device != "auto":
        return Device(config.device)
    if not torch.cuda.is_available():
        return Device("cpu", "no CUDA device" if torch.version.cuda else "torch has no CUDA")
    gpus, processes = torch.cuda.device_count(), read_local_world_size() or 1
    if gpus < processes:
        return Device("cpu", f"{gpus} GPU{'s' * (gpus > 1)} for {processes} processes")
    try:
        with ExitStack() as stack:
            if config.backend != "auto":
                stack.enter_context(backend(config.backend))
            chosen = backend_for("cuda")
    except (ValueError, RuntimeError):
        problem = "no CUDA backend" if config.backend == "auto" else f"backend {config.backend} is not for cuda"
        return Device("cpu", problem)
    if chosen.name == "reference" and config.backend == "auto":  # it is there to be right, not fast
        return Device("cpu", "no CUDA backend")
    if not is_flash(config) and config.precision not in chosen.precisions():
        return Device("cpu", f"no {config.precision} products on cuda")
    return Device("cuda", f"{torch.cuda.get_device_name()} found")
