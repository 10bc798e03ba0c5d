"""Models that read numbers and predict a number: those of `cells`, with a linear input and a linear output.

Shape suffixes: B batch, T time, K inputs, E embedding, H hidden size, M members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..ops import apply_probes
from ..ops.checks import IGNORE_INDEX, check_scalar
from ..params.space import flat_offsets
from .base import RecurrentLM
from .cells import GRU, LSTM, Elman
from .language import States
from .members import one_thread


class SeriesModel(RecurrentLM):
    """Predicts a number at every step of a time series, from the numbers of this step and those before it.

    Where a language model has tokens int64 [B, T], this one has inputs [B, T, K]: the embedding of a step is its K
    numbers times `embedding` [K, E]. Where it has logits [B, T, V], this one has predictions [B, T, 1]: `output_weight`
    is [1, H], `output_bias` [1]. Targets are numbers [B, T], and -100 marks those that are not scored. Every loss and
    sum of nats is a squared error instead. Inputs and targets are of the parameters' dtype.

    Populations are evaluated in torch, in float32 (float64 for float64 parameters), one perturbed copy at a time and in
    one thread on a CPU: there is no kernel, and torch's fused layers are faster than a batch of copies. The other
    arguments and errors are those of `RecurrentLM`.

    num_inputs: K.
    """

    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    def __init__(
        self,
        num_inputs: int,
        embed_dim: int,
        hidden_size: int,
        num_heads: int = 1,
        *,
        num_layers: int = 1,
        layer_norm: bool = False,
        residual: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_inputs,
            embed_dim,
            hidden_size,
            num_heads,
            num_layers=num_layers,
            layer_norm=layer_norm,
            residual=residual,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        self.output_weight = nn.Parameter(self.output_weight.detach().new_empty(1, hidden_size))
        self.output_bias = nn.Parameter(self.output_bias.detach().new_empty(1))
        self.reset_parameters(None if seed is None else torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """See `RecurrentLM.reset_parameters`. The embedding is N(0, 1 / K)."""
        super().reset_parameters(generator)
        self.embedding /= math.sqrt(len(self.embedding))

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean squared error over the scored positions, from zero states: float64 scalar."""
        return self.segment_nats(tokens_BT, targets_BT)[0] / (targets_BT != IGNORE_INDEX).sum()

    def segment_nats(
        self, tokens_BT: Tensor, targets_BT: Tensor, states: States | None = None
    ) -> tuple[Tensor, States]:
        """The sum of squared errors over the scored positions, float64, and the states after the last."""
        self.check_batch(tokens_BT, targets_BT)
        predicted_BT1, states = self.forward(tokens_BT, states)
        return _squares(predicted_BT1, targets_BT), states

    @torch.no_grad()
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """The prediction [B, 1] at the last step, and the states there."""
        with one_thread() if self.device.type == "cpu" else nullcontext():
            predicted_BT1, states = self.forward(tokens_BT, states)
        return predicted_BT1[:, -1].to(self.wide_dtype), states

    def forward_name(self, batch_size: int, precision: str = "float32") -> str:
        """See `LanguageModel.forward_name`: torch, whatever `population_forward` is."""
        return "torch"

    @torch.no_grad()
    def population_nats(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        seeds: Tensor,
        eps: float,
        *,
        states: Sequence[Tensor] = (),
        precision: str = "float32",
    ) -> Tensor:
        """Sums of squared errors, float64 [n, 2] on the CPU. precision: only "float32"."""
        self.check_batch(tokens_BT, targets_BT)
        check_scalar(eps, "eps", self.wide_dtype)
        if precision not in self.precisions:
            raise ValueError(f"a series model has no {precision} products: use precision='float32'")
        offsets, losses = flat_offsets(self), torch.zeros(len(seeds), 2, dtype=torch.float64)
        x_BTK, y_BT = tokens_BT.to(self.wide_dtype), targets_BT.to(self.wide_dtype)
        with one_thread() if self.device.type == "cpu" else nullcontext():
            for probe, seed in enumerate(seeds.split(1)):
                moved = {
                    name: apply_probes(p.detach(), eps, seed, offset=offsets[p], dtype=self.wide_dtype)[0]
                    if p in offsets
                    else p.detach().to(self.wide_dtype).expand(2, *p.shape)
                    for name, p in self.named_parameters()
                }
                for side in range(2):
                    member = {name: both[side] for name, both in moved.items()}
                    before = tuple(state[probe, side] for state in states) or None
                    predicted_BT1, after = functional_call(self, member, (x_BTK, before))
                    losses[probe, side] = _squares(predicted_BT1, y_BT)
                    for state, last in zip(states, after, strict=False):
                        state[probe, side] = last
        return losses

    def check_batch(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        """Raises ValueError if the inputs are no numbers [B, T, K], or the targets no numbers [B, T]."""
        self._check_inputs(tokens_BT)
        if targets_BT.shape != tokens_BT.shape[:2] or not targets_BT.is_floating_point():
            raise ValueError(
                f"targets must be numbers of shape {list(tokens_BT.shape[:2])}, "
                f"not {targets_BT.dtype} of shape {list(targets_BT.shape)}"
            )

    def _check_inputs(self, tokens_BT: Tensor) -> None:
        count = len(self.embedding)
        if not tokens_BT.is_floating_point() or tokens_BT.dim() != 3 or tokens_BT.shape[2] != count:
            raise ValueError(
                f"inputs must be numbers [B, T, {count}], not {tokens_BT.dtype} of shape {list(tokens_BT.shape)}"
            )
        if tokens_BT.numel() == 0:
            raise ValueError(f"inputs must not be empty, but their shape is {list(tokens_BT.shape)}")

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        self._check_inputs(tokens_BT)
        return tokens_BT.transpose(0, 1) @ self.embedding

    def _has_kernel(self) -> bool:
        return False

    def _score(self, tokens_BT: Tensor, targets_BT: Tensor, states: States) -> tuple[float, int, States]:
        total, states = self.segment_nats(tokens_BT, targets_BT, states)
        return float(total), 0, states


def _squares(predicted_BT1: Tensor, targets_BT: Tensor) -> Tensor:
    """The sum of squared errors over the scored positions: float64."""
    errors_BT = (predicted_BT1[..., 0].double() - targets_BT.double()) * (targets_BT != IGNORE_INDEX)
    return errors_BT.square().sum()


class SeriesLSTM(SeriesModel, LSTM):
    """A `SeriesModel` with LSTM layers."""


class SeriesGRU(SeriesModel, GRU):
    """A `SeriesModel` with GRU layers."""


class SeriesElman(SeriesModel, Elman):
    """A `SeriesModel` with Elman layers."""


SERIES_MODELS: dict[str, type[SeriesModel]] = {model.cell: model for model in (SeriesLSTM, SeriesGRU, SeriesElman)}
"""The series models by the names of their cells."""
