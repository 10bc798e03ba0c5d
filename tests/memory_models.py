"""Small models with a memory, and tokens for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zo_kernels.models import DNC, IGNORE_INDEX, PaperDNC, build_model

SIZES = {"vocab_size": 7, "embed_dim": 5, "hidden_size": 6, "memory_slots": 4, "memory_width": 3, "num_heads": 2}
BATCH, TIME = 3, 6

each_memory_model = pytest.mark.parametrize("name", ["dnc", "paper-dnc"])


def make_memory_model(name: str, dtype: torch.dtype = torch.float32, **sizes: int) -> DNC | PaperDNC:
    """A model with every parameter non-trivial, biases and norms too."""
    model = build_model(name, **{**SIZES, **sizes})
    assert isinstance(model, DNC | PaperDNC)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
            drawn = torch.randn(parameter.shape, generator=generator) * (2 / fan_in**0.5)
            parameter.copy_(drawn + (1 if "norm_weight" in parameter_name else 0))
    return model.to(dtype)


def make_tokens(batch: int = BATCH, time: int = TIME, seed: int = 0) -> Tensor:
    return torch.randint(SIZES["vocab_size"], (batch, time), generator=torch.Generator().manual_seed(seed))


def make_memory_batch(batch: int = BATCH, time: int = TIME) -> tuple[Tensor, Tensor]:
    """Tokens and targets, of which a sixth is not scored."""
    targets = make_tokens(batch, time, seed=1)
    targets.view(-1)[::6] = IGNORE_INDEX
    return make_tokens(batch, time), targets
