"""Reads a prompt and generates tokens one by one.

Shape suffixes: 1 the batch of one, T time, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import LanguageModel, States


@dataclass(frozen=True)
class DecodingState:
    """All that the continuation of a text depends on. Its size does not grow with the text.

    states: the model's states after the last token, for a batch of one; float32, or float64 if the parameters are.
    logits: [1, V], of the next token, of the same dtype.
    """

    states: States
    logits: Tensor


@torch.no_grad()
def read_prompt(model: LanguageModel, tokens_1T: Tensor, state: DecodingState | None = None) -> DecodingState:
    """Returns the state after reading tokens. The memory it takes does not grow with T.

    A text may be read in several parts, one after the other: the state is bit for bit the same on the CPU, except with
    an sLSTM or float64 parameters, where it is the same to rounding.

    tokens_1T: int64 or int32 [1, T], values in [0, V), T at least 1.
    state: after an earlier part of the same text, not modified. None starts from the model's initial states.

    Raises ValueError if the tokens are not such a tensor, or the state is not one of this model.
    """
    if tokens_1T.dim() != 2 or len(tokens_1T) != 1:
        raise ValueError(f"tokens must be [1, T], one text at a time, not of shape {list(tokens_1T.shape)}")
    logits_1V, states = model.next_logits(tokens_1T, None if state is None else state.states)
    return DecodingState(states, logits_1V)


def generate(
    model: LanguageModel,
    state: DecodingState,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yields `count` tokens that continue a text, each as soon as it is chosen.

    Each token is drawn from softmax(logits / temperature), computed in float64, over the top_k largest logits.

    state: of `read_prompt` or `load_state`, not modified.
    count: at least 0.
    temperature: finite, at least 0. With 0, the largest logit is taken (the first of equal ones), and no random number
        is drawn.
    top_k: at least 1; values above V mean V, and None means all. Of equal logits, the first ones are kept.
    generator: on the CPU; the same generator state gives the same tokens. None means torch's global one.

    Raises ValueError for a value out of range, at once; and FloatingPointError in place of a token if the largest
    logit is not finite.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    return _tokens(model, state, count, temperature, top_k, generator)


def _tokens(
    model: LanguageModel,
    state: DecodingState,
    count: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Iterator[int]:
    token: int | None = None
    for _ in range(count):
        if token is not None:
            state = read_prompt(model, torch.tensor([[token]]), state)
        token = _choose(state.logits[0], temperature, top_k, generator)
        yield token


@torch.no_grad()
def _choose(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    """Draws one token, as `generate` says."""
    logits_V = logits_V.cpu().double()
    largest = float(logits_V.max())
    if not math.isfinite(largest):
        raise FloatingPointError(
            f"the largest logit is {largest}: the model's weights are not finite, or far too large"
        )
    if temperature == 0:
        top_k = 1
    if top_k is not None:
        dropped = logits_V.argsort(descending=True, stable=True)[top_k:]
        logits_V = logits_V.index_fill(0, dropped, -math.inf)
    if top_k == 1:
        return int(logits_V.argmax())
    # The largest logit is subtracted first: divided by a tiny temperature, it would be infinite.
    probabilities_V = torch.softmax((logits_V - largest) / temperature, dim=0)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
