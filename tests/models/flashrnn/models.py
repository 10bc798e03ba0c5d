"""FlashLM models for the tests."""

from __future__ import annotations

import pytest
import torch

from tests.recurrent import SMALL, Shape, randomise
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.language_model import FlashLM

each_flash_cell = pytest.mark.parametrize("cell", CELLS)


def make_flash(
    cell: str, shape: Shape = SMALL, dtype: torch.dtype = torch.float32, seed: int = 0, **options: object
) -> FlashLM:
    """A model with random parameters; float32 values, or what `dtype` makes of them."""
    layers = {"num_layers": shape.layers, "layer_norm": shape.norm, "residual": shape.residual}
    sizes = shape.vocab, shape.embed, shape.heads * shape.head_dim, shape.heads
    model = FlashLM(*sizes, cell=cell, dtype=dtype, **layers, **options)
    randomise(model, seed)  # of recurrent_weight it takes the last dimension, D too, for fan_in
    return model
