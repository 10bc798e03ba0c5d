"""TF32: the ten bits to which a GPU may round the factors of float32 products, w + eps and w - eps among them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_logger = logging.getLogger("zo_kernels")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Turns TF32 off in cuDNN's recurrent and convolutional layers within its block, in the whole process.

    torch has it on there by default (torch.backends.cudnn.allow_tf32). In other products it is off by default; where
    somebody has turned it on, it stays on, and a warning is logged once.
    """
    if not torch.cuda.is_initialized():
        yield
        return
    warn_of_tf32()
    settings = _cudnn_settings()
    before = [getattr(owner, name) for owner, name, _ in settings]
    for owner, name, exact in settings:
        setattr(owner, name, exact)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def warn_of_tf32() -> None:
    """Logs a warning, once in a process, if products other than cuDNN's are rounded to TF32."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # torch 2.8 does not have it
    if matmul.allow_tf32 if precision is None else precision == "tf32":
        _warn_once()


@functools.cache
def _warn_once() -> None:
    _logger.warning(
        "torch rounds the factors of float32 products, here w + eps and w - eps, to the 10 bits of TF32, which blurs "
        "differences of losses: call torch.set_float32_matmul_precision('highest'), and for losses that you compare "
        "yourself set torch.backends.cudnn.allow_tf32 = False, as a step does while it evaluates losses"
    )


def _cudnn_settings() -> list[tuple[Any, str, object]]:
    """Each setting of cuDNN: the object that has it, its name, and the value without TF32."""
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "rnn"):  # torch 2.9 refuses to read allow_tf32 where only one of the two was changed
        return [(cudnn.rnn, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False)]
