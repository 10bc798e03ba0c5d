"""A transformer of about the size of a recurrent model, for the memory of its step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_VOCABULARY, LAYERS, HEADS = 100, 4, 4


class _LanguageModel(nn.Module):
    def __init__(self, width: int, context_length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, width)
        self.places = nn.Embedding(context_length, width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.output = nn.Linear(width, _VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context_length))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        embedded_BTC = self.tokens(tokens_BT) + self.places.weight
        return self.output(self.layers(embedded_BTC, mask=self.mask, is_causal=True))


def width_of(parameters: int) -> int:
    """The width, a multiple of the heads, that comes closest to this number of parameters, positions not counted."""
    a, b, c = 12 * LAYERS, 13 * LAYERS + 2 * _VOCABULARY, _VOCABULARY - parameters
    width = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return max(HEADS, round(width / HEADS) * HEADS)


def warm_up() -> None:
    """Takes a step of a small model."""
    make_step(100, 4, 2)(0)


def make_step(parameters: int, context_length: int, batch_size: int) -> Callable[[int], object]:
    """Returns a function that takes a step with SGD: forward, backward, update."""
    torch.manual_seed(0)
    model = _LanguageModel(width_of(parameters), context_length)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(number: int) -> None:
        random = torch.Generator().manual_seed(number)
        stream = torch.randint(_VOCABULARY, (batch_size, context_length + 1), generator=random)
        logits = model(stream[:, :-1])
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), stream[:, 1:].flatten()).backward()
        optimizer.step()

    return step
