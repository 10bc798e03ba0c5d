"""Modules of every kind, each with a loss and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """A frozen layer with two small trained matrices beside it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(size, size).requires_grad_(False)
        self.down = nn.Linear(size, 2, bias=False)
        self.up = nn.Linear(2, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x))


class Tied(nn.Module):
    """A language model whose output projection is its embedding, with a padding row and causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=3)
        self.project = nn.Linear(8, 24)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.project(self.embedding(tokens)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Masked(nn.Module):
    """Attention with a mask, fewer keys than queries' heads, and a learned bias in the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 4)
        self.bias = nn.Parameter(torch.randn(1, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
        k = self.key(x)[:, None]
        hidden = torch.ones(len(x), 1, 5, 5).triu(1).bool()
        one = F.scaled_dot_product_attention(q, k, k, self.bias, enable_gqa=True)
        return one + F.scaled_dot_product_attention(q, k, k, attn_mask=~hidden, scale=0.3, enable_gqa=True)


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 1).square().mean()


def cross_entropy(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def adapters() -> nn.Module:
    return nn.Sequential(Adapter(6), nn.Tanh(), Adapter(6))


def convolutions() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    return model.to(memory_format=torch.channels_last).train()


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()


def branching(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y.sum() if y.sum() > 0 else y.square().sum()


MODULES: dict[str, tuple[Callable[[], nn.Module], Any, Tensor]] = {
    "mlp": (mlp, squares, torch.linspace(-1, 1, 30).view(5, 6)),
    "adapters": (
        lambda: nn.Sequential(Adapter(6), nn.Tanh(), Adapter(6)),
        squares,
        torch.linspace(-1, 1, 30).view(5, 6),
    ),
    "tied": (Tied, cross_entropy, torch.arange(21).view(3, 7) % 11),
    "masked": (Masked, squares, torch.linspace(-1, 1, 80).view(2, 5, 8)),
    "convolutions": (convolutions, squares, torch.linspace(-1, 1, 192).view(4, 3, 4, 4).cos()),
    "encoder": (encoder, squares, torch.linspace(-1, 1, 64).view(2, 4, 8).sin()),
    "branching": (mlp, branching, torch.linspace(-1, 1, 30).view(5, 6)),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any, Tensor]:
    make, loss_fn, batch = MODULES[name]
    torch.manual_seed(0)
    return make().to(dtype), loss_fn, batch.to(dtype) if batch.is_floating_point() else batch
