"""Records a chunk of probes as one CUDA graph, which saves the kernel launches that dominate in small models."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ...backends import backend_for
from ...backends.base import Backend
from .call import first_line
from .choice import FlashBackend

_logger = logging.getLogger("zo_kernels")

_STEP_WORK = 1e9
"""Multiply-adds of one time step of a chunk, below which launching takes longer than computing."""

_STEPS = 1024
"""Most time steps of a graph. Each has about twenty nodes."""


def obstacle(chosen: FlashBackend, device: torch.device) -> str | None:
    """The reason why a chunk computed by `chosen` on `device` can't be recorded, or None if none is known."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if chosen.name == "cuda":
        return "flashrnn's backend cuda waits for the device in every call, which a CUDA graph can't record"
    backend = backend_for(device.type)
    if type(backend).apply_probes is Backend.apply_probes:
        return f"the ops' backend {backend.name!r} reads seeds on the host"
    return None


def is_small(step_work: float, steps: int) -> bool:
    """Whether a chunk of `step_work` multiply-adds a time step is worth recording."""
    return step_work < _STEP_WORK and steps <= _STEPS


def record(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Records `compute` and returns a function that replays it on the current values of its tensors.

    The next replay overwrites the result. `compute` must not wait for the device, and must read and write the same
    memory every time. It runs twice before it is recorded, so that everything set up at a first call exists.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(2):
            compute()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def record_or_compute(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Like `record`, but if recording fails, logs a warning and returns `compute` itself."""
    try:
        return record(compute)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _logger.warning("no CUDA graph, since recording failed: %s", first_line(error))
        return compute
