"""The ways to evaluate a population on a GPU, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.backends.recurrent.population_kernel import VARIABLE
from zo_kernels.models import FlashLM, RecurrentLM

from .sizes import Size


@contextmanager
def turned_on() -> Iterator[None]:
    """The own population kernel, which is off unless its environment variable is set."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@dataclass(frozen=True)
class Way:
    flash: bool
    precision: str
    kernel: bool = False

    def model(self, size: Size, device: str) -> RecurrentLM | FlashLM:
        """With parameters drawn on the device: the host would take a minute for the largest."""
        torch.manual_seed(0)
        sizes = size.vocab, size.embed, size.hidden_size, size.num_heads
        return FlashLM(*sizes, device=device) if self.flash else zo.models.LSTM(*sizes, device=device)

    def context(self) -> AbstractContextManager[None]:
        return turned_on() if self.kernel else nullcontext()


WAYS = {
    "kernel": Way(flash=False, precision="bfloat16", kernel=True),
    "batched": Way(flash=False, precision="float32"),
    "flash": Way(flash=True, precision="float32"),
    "flash-bfloat16": Way(flash=True, precision="bfloat16"),
}
"""kernel: csrc/cuda/population.cu. batched: backends/recurrent_batched.py, in a rehearsal the CPU's kernel. flash:
FlashLM, in chunks of probes."""


def batch_of(size: Size, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens and the next ones as targets, [B, T] each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size.vocab, (size.batch, size.time + 1), generator=generator).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def flash_backend(model: FlashLM, precision: str) -> str:
    """Which of flashrnn's backends computes this model's recurrence, and why; as it is after a first call."""
    dtype = torch.bfloat16 if precision == "bfloat16" else model.bias.dtype
    chosen = model._engines()[0].backend(model.bias.device, dtype)
    return f"{chosen.name} ({chosen.reason})"
