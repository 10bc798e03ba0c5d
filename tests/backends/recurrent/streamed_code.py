"""The machine code of the streamed forward, for a GPU that need not be there."""

from __future__ import annotations

import pytest

from tests.backends.ahead_of_time import Compiler
from tests.device_code import Kernel
from tests.recurrent import Shape, make_batch, make_model, make_seeds
from zo_kernels.backends import triton
from zo_kernels.backends.recurrent import streamed


def streamed_forward(
    compiler: Compiler, capability: int, cell: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> list[Kernel]:
    """The kernels of two steps, for 100 tokens, 96 sequences and heads of `dim` units."""
    monkeypatch.setattr(streamed, "_capability", lambda device: divmod(capability, 10))
    monkeypatch.setattr(triton.TritonBackend, "unavailable", lambda self: None)
    monkeypatch.setattr(triton.TritonBackend, "device_types", ("cuda", "cpu"))
    shape = Shape(100, 8, 1, dim, 96, 2)
    model, batch, seeds = make_model(cell, shape), make_batch(shape, ignored=0), make_seeds(1).numpy()
    return compiler.kernels(capability, streamed.recurrent_nats, model._weights(), *batch, seeds, 2**-5, (), None)
