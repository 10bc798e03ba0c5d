"""Recurrent language models and batches for the tests, and how far a float32 forward may be off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.models import GRU, IGNORE_INDEX, LSTM, MODELS, RecurrentLM, States

each_cell = pytest.mark.parametrize("cell", MODELS)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Those of the kernel; float64 is the reference's."""

TOLERANCE = 5e-6
"""Nats by which a scored position may be off, and how much a state may: the rounding of float32.

Half a unit of the last place at 1 is 6e-8. A dot product of up to 200 terms gathers some ten of them, a state one or
two more for its exponentials, and logits of a few units once more. Of 20,000 random models like those of `make_model`,
at eps up to 0.1, the worst position was off by 2.6e-6 and the worst state by 1.5e-6.
"""


def tolerance_of(model: RecurrentLM) -> float:
    """TOLERANCE, and four times as much for several layers or a layer norm.

    A layer norm divides by the spread of a layer's units, which should be eight or more. Of 1,500 random models the
    worst position was off by 1.7e-6 and the worst state by 3.5e-6.
    """
    return TOLERANCE * (4 if model.num_layers > 1 or model.layer_norm else 1)


class Shape(NamedTuple):
    """Sizes of a model and of its batch."""

    vocab: int
    embed: int
    heads: int
    head_dim: int
    batch: int
    time: int
    layers: int = 1
    norm: bool = False
    residual: bool = False

    def __str__(self) -> str:
        sizes = "-".join(f"{letter}{size}" for letter, size in zip("VENDBTL", self, strict=False))
        return sizes + "-norm" * self.norm + "-residual" * self.residual


SMALL = Shape(vocab=11, embed=5, heads=2, head_dim=6, batch=3, time=4)


def randomise(model: RecurrentLM, seed: int = 0) -> RecurrentLM:
    """The model with every parameter non-trivial, biases too, and pre-activations of about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter.shape[-1] if "weight" in name and name != "norm_weight" else 1
            values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            parameter.copy_(1 + values / 8 if name == "norm_weight" else values)  # near 0 it would hide a unit
    return model


def make_model(cell: str, shape: Shape = SMALL, dtype: torch.dtype = torch.float32, seed: int = 0) -> RecurrentLM:
    """A model with random parameters; float32 values, or what `dtype` makes of them."""
    sizes = shape.vocab, shape.embed, shape.heads * shape.head_dim, shape.heads
    model = MODELS[cell](*sizes, num_layers=shape.layers, layer_norm=shape.norm, residual=shape.residual, dtype=dtype)
    return randomise(model, seed)


def tokens_for(model: RecurrentLM, batch: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(model.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def make_batch(shape: Shape = SMALL, seed: int = 0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Tokens and targets, of which a share is not scored, but at least one is."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(shape.vocab, (shape.batch, shape.time), generator=generator) for _ in range(2))
    left_out = torch.rand(targets.shape, generator=generator) < ignored
    left_out[-1, shape.time // 2] = False
    return tokens, targets.masked_fill(left_out, IGNORE_INDEX)


def make_seeds(count: int, seed: int = 0) -> Tensor:
    """Probe seeds from all of int64."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def make_states(model: RecurrentLM, probes: int, batch: int, seed: int = 0) -> States:
    """Population states in [-1, 1], where those of a sequence that has begun lie."""
    generator = torch.Generator().manual_seed(seed)
    states = model.population_states(probes, batch)
    return tuple((2 * torch.rand(state.shape, generator=generator) - 1).to(state.dtype) for state in states)


def copies(states: States) -> States:
    return tuple(state.clone() for state in states)


def moved(model: RecurrentLM, alpha: float, seed: int) -> RecurrentLM:
    """A copy of the model at theta + alpha * p(seed), made by the ops; of 16-bit parameters, in float32.

    Offsets are counted anew here: parameters in order, each at the next multiple of 128; frozen ones stay.
    """
    moving = copy.deepcopy(model)
    if moving.bias.dtype.itemsize < 4:
        moving.float()
    offset = 0
    with torch.no_grad():
        for parameter in moving.parameters():
            if parameter.requires_grad:
                parameter.copy_(zo.ops.apply_probe(parameter.contiguous(), alpha, seed, offset=offset))
                offset += -(-parameter.numel() // 128) * 128
    return moving


def written_out(
    model: RecurrentLM, x_BK: Tensor, states: States, factor: Callable[[Tensor], Tensor] = lambda h: h
) -> tuple[Tensor, States]:
    """One step by the formulas of the models' documentation: the output [B, H] and the states.

    x_BK: the embeddings. factor: what is made of hidden states and outputs before they are multiplied.
    """
    heads, after = model.num_heads, []
    for layer in range(model.num_layers):
        weights: tuple[Tensor, ...] = (model.input_weight, model.recurrent_weight, model.bias)
        if layer > 0:
            upper = model.upper_input_weight, model.upper_recurrent_weight, model.upper_bias
            weights = tuple(weight[layer - 1] for weight in upper)
        of_layer = tuple(state[layer * heads : (layer + 1) * heads] for state in states)
        after.append(_layer_written_out(model, weights, x_BK, of_layer, factor))
        h_BH, below_BK = factor(after[-1][0]).transpose(0, 1).flatten(1), x_BK
        x_BK = h_BH
        if model.layer_norm:
            centered = h_BH - h_BH.mean(dim=1, keepdim=True)
            scale = (centered.square().mean(dim=1, keepdim=True) + 1e-5).rsqrt()
            x_BK = centered * scale * model.norm_weight[layer] + model.norm_bias[layer]
        if model.residual and layer > 0:
            x_BK = x_BK + below_BK
        x_BK = factor(x_BK)
    return x_BK, tuple(torch.cat(parts) for parts in zip(*after, strict=True))


def _layer_written_out(
    model: RecurrentLM,
    weights: tuple[Tensor, ...],
    x_BK: Tensor,
    states_NBD: States,
    factor: Callable[[Tensor], Tensor],
) -> States:
    """The states of a layer, head by head."""

    def of(weight_ND: Tensor, x: Tensor) -> Tensor:
        return torch.stack([x_BK @ w.t() for w, x_BK in zip(weight_ND, x, strict=True)])

    h, e = states_NBD[0], x_BK.expand(model.num_heads, *x_BK.shape)
    from_h = factor(h)
    input_weight, recurrent_weight, bias = weights[0], weights[1], weights[2][:, :, None]
    if isinstance(model, LSTM):
        i, f, z, o = (of(input_weight[k], e) + of(recurrent_weight[k], from_h) + bias[k] for k in range(4))
        c = f.sigmoid() * states_NBD[1] + i.sigmoid() * z.tanh()
        return o.sigmoid() * c.tanh(), c
    if isinstance(model, GRU):
        g = of(recurrent_weight[0], from_h) + bias[0]
        r, z = (of(input_weight[k], e) + of(recurrent_weight[k + 1], from_h) + bias[k + 1] for k in range(2))
        n = of(input_weight[2], e) + bias[3] + r.sigmoid() * g
        return (z.sigmoid() * h + (1 - z.sigmoid()) * n.tanh(),)
    return ((of(input_weight[0], e) + of(recurrent_weight[0], from_h) + bias[0]).tanh(),)
