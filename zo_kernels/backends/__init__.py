"""Which backend computes the ops: chosen by the device of the tensor, or by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .base import Backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

_logger = logging.getLogger("zo_kernels")

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CpuBackend(), CudaBackend(), TritonBackend(), ReferenceBackend())
}
"""Every backend by name, in order of preference: the first available one that knows a tensor's device computes."""

_default: Backend | None = None
_override: ContextVar[Backend | None] = ContextVar("zo_kernels_backend", default=None)
_automatic: dict[str, Backend] = {}


def get_backend(name: str) -> Backend:
    """Returns the backend called `name`. Raises ValueError if there is none, RuntimeError if it can't be used here."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: zo_kernels has {', '.join(BACKENDS)}")
    reason = BACKENDS[name].unavailable()
    if reason is not None:
        raise RuntimeError(f"backend {name!r} can't be used: {reason}")
    return BACKENDS[name]


def set_backend(name: str | None) -> None:
    """Makes the backend called `name` compute all ops of this process. None returns to the choice by device.

    Raises ValueError for an unknown backend, and RuntimeError for one that can't be used here, with the reason. The
    backend in use stays as it was then.
    """
    global _default
    _default = None if name is None else get_backend(name)


@contextmanager
def backend(name: str) -> Iterator[Backend]:
    """Makes the backend called `name` compute the ops inside a `with` block, in this thread or task only.

    Raises as `set_backend` does.
    """
    token = _override.set(get_backend(name))
    try:
        yield BACKENDS[name]
    finally:
        _override.reset(token)


def is_named() -> bool:
    """Whether `set_backend` or `backend` has named the backend, so that the device of a tensor does not choose it."""
    return (_override.get() or _default) is not None


def backend_for(device_type: str) -> Backend:
    """Returns the backend that computes on tensors of `device_type` ("cpu", "cuda") now.

    Raises RuntimeError if the backend that was asked for does not compute on that device, or if none does.
    """
    chosen = _override.get() or _default or _automatic.get(device_type)
    if chosen is None:
        chosen = _automatic[device_type] = _choose(device_type)
    if device_type not in chosen.device_types:
        raise RuntimeError(f"backend {chosen.name!r} does not compute on {device_type} tensors")
    return chosen


def _choose(device_type: str) -> Backend:
    reasons: list[str] = []
    for candidate in BACKENDS.values():
        if device_type not in candidate.device_types:
            continue
        reason = candidate.unavailable()
        if reason is None:
            level = logging.WARNING if candidate.name == "reference" else logging.INFO
            _logger.log(level, "%s tensors: backend %s%s", device_type, candidate.name, "".join(reasons))
            return candidate
        reasons.append(f"; {candidate.name} can't be used: {reason}")
    raise RuntimeError(f"no backend computes on {device_type} tensors{''.join(reasons)}")
