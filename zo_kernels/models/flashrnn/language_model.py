"""The recurrent language models on FlashRNN, for training on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backends.base import CellShape, RecurrentWeights
from ...backends.recurrent.loss import logits, nats
from ...ops.checks import IGNORE_INDEX, check_targets_form, check_tokens, check_tokens_form
from ...params.space import flat_offsets
from ..base import RecurrentLM
from ..cells import MODELS
from ..language import States
from ..recurrent_layer import SIZES, RecurrentLayerLM
from .call import Recurrence
from .checks import check_states
from .choice import BACKENDS, CELLS
from .members import NAMES, Members, wide_dtype
from .plan import segment_length
from .population import PopulationForward, walk


class FlashLM(RecurrentLayerLM):
    """Token embedding, one recurrent layer of N independent heads run by FlashRNN, output projection to the vocabulary.

    This is `RecurrentLM` for CUDA devices: the same models and sLSTM, with the same methods. flashrnn computes the
    recurrence, with the members of a population as additional heads. On other devices its backend `vanilla` does.

    Parameters, in `named_parameters()` order: embedding [V, E]; input_weight [N, I, D, E]; recurrent_weight [N, P, R,
    D] (head, previous unit, gate, new unit); bias [N, G, D]; output_weight [V, H]; output_bias [V]. This is the layout
    of flashrnn's `cuda`. All backends use it, so that checkpoints and the numbering of a probe's elements do not depend
    on the machine. The numbering differs from that of `RecurrentLM`, where the same seed gives another probe.

    vocab_size, embed_dim, hidden_size, num_heads, seed, device, dtype: as for `RecurrentLM`. The same seed gives the
        same initial parameters, in another layout.
    cell: "lstm", "gru", "elman" or "slstm".
    backend: "cuda", "vanilla", "cuda_fused" or "triton_fused"; None uses "cuda" if it works for the shape, dtype and
        machine, else "vanilla". The choice is made and logged at the first call.
    cuda_graph: whether to record populations as CUDA graphs, which backend "cuda" does not allow. Populations that
        carry states are never recorded. None records if it is possible and the model is small.

    Raises ValueError if a size is not a positive integer, num_heads does not divide hidden_size, or the cell or backend
    is unknown. Calls raise RuntimeError if a requested backend or CUDA graph can't be used.

    Sources: FlashRNN (Pöppel, Beck and Hochreiter, arXiv 2412.07752); sLSTM from xLSTM (Beck et al., arXiv 2405.04517).
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        num_heads: int = 1,
        *,
        cell: str = "lstm",
        backend: str | None = None,
        cuda_graph: bool | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_layer_sizes(vocab_size, embed_dim, hidden_size, num_heads)
        if cell not in CELLS:
            raise ValueError(f"unknown cell {cell!r}: choose one of {', '.join(CELLS)}")
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"unknown flashrnn backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        self.cell = cell
        self.backend = backend
        self.cuda_graph = cuda_graph
        self._engine: tuple[Recurrence, PopulationForward] | None = None

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        shape = self._cell_shape()
        self.embedding = empty(vocab_size, embed_dim)
        self.input_weight = empty(num_heads, shape.input_rows, self.head_dim, embed_dim)
        self.recurrent_weight = empty(num_heads, self.head_dim, shape.recurrent_rows, self.head_dim)
        self.bias = empty(num_heads, shape.biases, self.head_dim)
        self.output_weight = empty(vocab_size, hidden_size)
        self.output_bias = empty(vocab_size)
        self.reset_parameters(None if seed is None else torch.Generator().manual_seed(seed))

    @classmethod
    @torch.no_grad()
    def from_recurrent(
        cls, model: RecurrentLM, *, backend: str | None = None, cuda_graph: bool | None = None
    ) -> FlashLM:
        """Copies `model` into this layout. `to_recurrent` restores it bit for bit.

        Raises ValueError if the model has several layers or a layer norm.
        """
        if model.num_layers > 1 or model.layer_norm:
            raise ValueError("FlashLM has a single layer and no layer norm: this model has more")
        copied = cls(cell=model.cell, backend=backend, cuda_graph=cuda_graph, **_arguments_of(model))
        for name, x in zip(NAMES, copied._as_recurrent(), strict=True):
            x.copy_(model.get_parameter(name))
            copied.get_parameter(name).requires_grad_(model.get_parameter(name).requires_grad)
        return copied

    @torch.no_grad()
    def to_recurrent(self) -> RecurrentLM:
        """Copies the model into an LSTM, GRU or Elman model. Raises ValueError for an sLSTM."""
        if self.cell not in MODELS:
            raise ValueError(f"there is no RecurrentLM with the cell {self.cell}, only {', '.join(MODELS)}")
        copied = MODELS[self.cell](**_arguments_of(self))
        for name, x in zip(NAMES, self._as_recurrent(), strict=True):
            copied.get_parameter(name).copy_(x).requires_grad_(self.get_parameter(name).requires_grad)
        return copied

    def _cell_shape(self) -> CellShape:
        return CELLS[self.cell]

    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] for the token after each position, and the last states. See `RecurrentLM.forward`."""
        hidden_TBMH: list[Tensor] = []
        states = self._run(tokens_BT, states, lambda _, part: hidden_TBMH.append(part))
        hidden_TBH = torch.cat(hidden_TBMH)[:, :, 0] if len(hidden_TBMH) > 1 else hidden_TBMH[0][:, :, 0]
        return F.linear(hidden_TBH, self.output_weight, self.output_bias).transpose(0, 1), states

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, from zero states: float64 scalar.

        See `RecurrentLM.loss`. Logits are float32 (float64 for float64 parameters), also for 16-bit parameters. Only
        one tile of them exists at a time.
        """
        check_tokens_form(tokens_BT)
        check_targets_form(tokens_BT, targets_BT)
        if self.bias.device.type == "cpu":  # a check of values would wait for a GPU, which checks them itself
            self.check_batch(tokens_BT, targets_BT)
        targets_TB = targets_BT.t().to(self.bias.device)
        parts: list[Tensor] = []

        def add(segment: slice, hidden_TBMH: Tensor) -> None:
            parts.append(nats(hidden_TBMH, self.output_weight[None], self.output_bias[None], targets_TB[segment]))

        self._run(tokens_BT, None, add)
        return torch.cat(parts).sum() / (targets_TB != IGNORE_INDEX).sum()

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
        """Like `population_loss`, but the sum over the scored positions, so that segments and micro-batches add up.

        Evaluates one chunk of probes at a time, with the members as heads of one call of flashrnn. Long contexts are
        evaluated in segments. Raises the errors of `population_loss`, and ValueError if a single step of the batch is
        too large for flashrnn.

        precision: "bfloat16" runs the recurrence in bfloat16. Recurrent and output weights are rounded, and eps is
        limited, as in `zo_kernels.ops.recurrent_nats`, so that w + eps and w - eps are exact. But flashrnn also rounds
        all states, and the sums of input projections and biases. float64 parameters are always computed in float64.
        """
        weights = self._weights(flat_offsets(self))
        return self._engines()[1].nats(weights, tokens_BT, targets_BT, seeds, float(eps), states, precision)

    @torch.no_grad()
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, V] after the last token, and the states there, both float32 (float64 if the parameters are).

        Use it to generate: its memory does not grow with T. Raises the errors of `forward`.
        """
        latest_BMH: list[Tensor] = []

        def keep(_: slice, hidden_TBMH: Tensor) -> None:
            latest_BMH[:] = [hidden_TBMH[-1].clone()]

        states = self._run(tokens_BT, states, keep)
        scores_MBV = logits(latest_BMH[0].transpose(0, 1), self.output_weight[None], self.output_bias[None])
        return scores_MBV[0], tuple(state.to(wide_dtype(state.dtype)) for state in states)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*SIZES, "cell", "backend"))

    def __getstate__(self) -> dict[str, Any]:
        """Drops the engine, so that a copy makes its own."""
        return {**self.__dict__, "_engine": None}

    def _engines(self) -> tuple[Recurrence, PopulationForward]:
        if self._engine is None:
            recurrence = Recurrence(self.cell, self.head_dim, self.backend, captured=self.cuda_graph is True)
            self._engine = recurrence, PopulationForward(recurrence, self.cuda_graph)
        return self._engine

    def _run(self, tokens_BT: Tensor, states: States | None, consume: Callable[[slice, Tensor], None]) -> States:
        """Runs the unperturbed model over the tokens. `consume` gets hidden states [T, B, 1, H] of each segment."""
        check_tokens_form(tokens_BT)
        if self.bias.device.type == "cpu":
            check_tokens(tokens_BT, self.vocab_size)
        (batch_size, length), device, dtype = tokens_BT.shape, self.bias.device, self.bias.dtype
        if states is None:
            states = self.initial_states(batch_size)
        check_states(self.cell, states, [self.num_heads, batch_size, self.head_dim], None, device)
        before = torch.stack([state.transpose(0, 1) for state in states]).to(dtype)
        weights = self._weights({})
        steps = segment_length(weights, batch_size, length)
        recurrence, _ = self._engines()
        last = walk(recurrence, Members.of(weights), tokens_BT.to(device), before, dtype, steps, consume)
        return tuple(state.transpose(0, 1).contiguous() for state in last)

    def _weights(self, offsets: dict[Tensor, int]) -> RecurrentWeights:
        tensors = tuple(self.get_parameter(name) for name in NAMES)
        return RecurrentWeights.of(self.cell, [offsets.get(p, -1) for p in tensors], tensors)

    def _as_recurrent(self) -> list[Tensor]:
        orders = {"input_weight": (1, 0, 2, 3), "recurrent_weight": (2, 0, 3, 1), "bias": (1, 0, 2)}
        tensors = [(name, self.get_parameter(name)) for name in NAMES]
        return [x.permute(orders[name]) if name in orders else x for name, x in tensors]


def _arguments_of(model: FlashLM | RecurrentLM) -> dict[str, Any]:
    """Arguments for a model of the same shape. The seed only keeps torch's global random state unused."""
    sizes = {name: getattr(model, name) for name in SIZES}
    return {**sizes, "device": model.bias.device, "dtype": model.bias.dtype, "seed": 0}
