"""The recurrent language models on FlashRNN, for training on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backends.base import WEIGHT_NAMES, CellShape, RecurrentWeights
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
from .load import flashrnn
from .members import Members, wide_dtype
from .plan import segment_length, split_batch
from .population import PopulationForward, walk

_LAYERS = ("num_layers", "layer_norm", "residual")

_ORDERS = {
    "input_weight": (1, 0, 2, 3),
    "recurrent_weight": (2, 0, 3, 1),
    "bias": (1, 0, 2),
    "upper_input_weight": (0, 2, 1, 3, 4),
    "upper_recurrent_weight": (0, 3, 1, 4, 2),
    "upper_bias": (0, 2, 1, 3),
}
"""The dimensions of parameters in the order in which `RecurrentLM` has them."""


class FlashLM(RecurrentLayerLM):
    """Token embedding, L recurrent layers of N independent heads run by FlashRNN, output projection to the vocabulary.

    This is `RecurrentLM` for CUDA devices: the same models and sLSTM, with the same methods. flashrnn computes the
    recurrence of each layer in turn, with the members of a population as additional heads. On other devices its backend
    `vanilla` does. What is between layers (projections, layer norms, residual connections) is computed in torch.

    Parameters, in `named_parameters()` order: embedding [V, E]; input_weight [N, I, D, E]; recurrent_weight [N, P, R,
    D] (head, previous unit, gate, new unit); bias [N, G, D]; output_weight [V, H]; output_bias [V]. If L > 1, those of
    the other layers follow: upper_input_weight [L - 1, N, I, D, H]; upper_recurrent_weight [L - 1, N, P, R, D];
    upper_bias [L - 1, N, G, D]. With layer norm norm_weight and norm_bias [L, H] are the last. This is the layout of
    flashrnn's `cuda`. All backends use it, so that checkpoints and the numbering of a probe's elements do not depend
    on the machine. The numbering differs from that of `RecurrentLM`, where the same seed gives another probe.

    vocab_size, embed_dim, hidden_size, num_heads, num_layers, layer_norm, residual, seed, device, dtype: as for
        `RecurrentLM`. The same seed gives the same initial parameters, in another layout.
    cell: "lstm", "gru", "elman" or "slstm".
    backend: "cuda", "vanilla", "cuda_fused" or "triton_fused"; None uses "cuda" if it works for the shape, dtype and
        machine, else "vanilla". The choice is made and logged at the first call.
    cuda_graph: whether to record populations as CUDA graphs, which backend "cuda" does not allow. Populations that
        carry states are never recorded. None records if it is possible and the model is small.

    Raises ValueError if a size is not a positive integer, num_heads does not divide hidden_size, there are residual
    connections with a single layer, or the cell or backend is unknown. Calls raise RuntimeError if a requested backend
    or CUDA graph can't be used.

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
        num_layers: int = 1,
        layer_norm: bool = False,
        residual: bool = False,
        backend: str | None = None,
        cuda_graph: bool | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_layer_sizes(vocab_size, embed_dim, hidden_size, num_heads, num_layers, layer_norm, residual)
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
        if num_layers > 1:
            above = num_layers - 1
            self.upper_input_weight = empty(above, num_heads, shape.input_rows, self.head_dim, hidden_size)
            self.upper_recurrent_weight = empty(above, num_heads, self.head_dim, shape.recurrent_rows, self.head_dim)
            self.upper_bias = empty(above, num_heads, shape.biases, self.head_dim)
        if layer_norm:
            self.norm_weight = empty(num_layers, hidden_size)
            self.norm_bias = empty(num_layers, hidden_size)
        self.reset_parameters(None if seed is None else torch.Generator().manual_seed(seed))

    @classmethod
    @torch.no_grad()
    def from_recurrent(
        cls, model: RecurrentLM, *, backend: str | None = None, cuda_graph: bool | None = None
    ) -> FlashLM:
        """Copies `model` into this layout. `to_recurrent` restores it bit for bit."""
        copied = cls(cell=model.cell, backend=backend, cuda_graph=cuda_graph, **_arguments_of(model))
        for name, x in zip(copied._names(), copied._as_recurrent(), strict=True):
            x.copy_(model.get_parameter(name))
            copied.get_parameter(name).requires_grad_(model.get_parameter(name).requires_grad)
        return copied

    @torch.no_grad()
    def to_recurrent(self) -> RecurrentLM:
        """Copies the model into an LSTM, GRU or Elman model. Raises ValueError for an sLSTM."""
        if self.cell not in MODELS:
            raise ValueError(f"there is no RecurrentLM with the cell {self.cell}, only {', '.join(MODELS)}")
        copied = MODELS[self.cell](**_arguments_of(self))
        for name, x in zip(self._names(), self._as_recurrent(), strict=True):
            copied.get_parameter(name).copy_(x).requires_grad_(self.get_parameter(name).requires_grad)
        return copied

    def _cell_shape(self) -> CellShape:
        return CELLS[self.cell]

    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] for the token after each position, and the last states. See `RecurrentLM.forward`."""
        parts: dict[int, list[Tensor]] = {}  # by the first of their rows

        def keep(rows: slice, _: slice, outputs_TBMH: Tensor) -> None:
            parts.setdefault(rows.start, []).append(outputs_TBMH[:, :, 0])

        states = self._run(tokens_BT, states, keep)
        hidden_TBH = _joined([_joined(segments, 0) for segments in parts.values()], 1)
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

        def add(rows: slice, segment: slice, outputs_TBMH: Tensor) -> None:
            targets = targets_TB[segment, rows]
            parts.append(nats(outputs_TBMH, self.output_weight[None], self.output_bias[None], targets))

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
        evaluated in segments, and a batch of which a step is too large for flashrnn in parts. Raises the errors of
        `population_loss`, and ValueError if a step of one sequence is too large.

        precision: "bfloat16" runs the recurrence in bfloat16. Recurrent and output weights are rounded, and eps is
        limited, as in `zo_kernels.ops.recurrent_nats`, so that w + eps and w - eps are exact. But flashrnn also rounds
        all states, and the sums of input projections and biases. float64 parameters are always computed in float64.
        """
        weights = self._weights(flat_offsets(self))
        return self._engines()[1].nats(weights, tokens_BT, targets_BT, seeds, float(eps), states, precision)

    def forward_name(self, batch_size: int, precision: str = "float32") -> str:
        """See `LanguageModel.forward_name`: flashrnn and its backend. Chooses the backend, as the first call would."""
        flashrnn()  # which raises if it is not installed
        wide = wide_dtype(self.bias.dtype)
        dtype = torch.bfloat16 if precision == "bfloat16" and wide == torch.float32 else wide
        return f"flashrnn ({self._engines()[0].backend(self.device, dtype).name})"

    @torch.no_grad()
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, V] after the last token, and the states there, both float32 (float64 if the parameters are).

        Use it to generate: its memory does not grow with T. Raises the errors of `forward`.
        """
        latest: dict[int, Tensor] = {}  # by the first of their rows

        def keep(rows: slice, _: slice, outputs_TBMH: Tensor) -> None:
            latest[rows.start] = outputs_TBMH[-1].clone()

        states = self._run(tokens_BT, states, keep)
        latest_BMH = _joined(list(latest.values()), 0)
        scores_MBV = logits(latest_BMH.transpose(0, 1), self.output_weight[None], self.output_bias[None])
        return scores_MBV[0], tuple(state.to(wide_dtype(state.dtype)) for state in states)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*SIZES, *_LAYERS, "cell", "backend"))

    def __getstate__(self) -> dict[str, Any]:
        """Drops the engine, so that a copy makes its own."""
        return {**self.__dict__, "_engine": None}

    def _engines(self) -> tuple[Recurrence, PopulationForward]:
        if self._engine is None:
            recurrence = Recurrence(self.cell, self.head_dim, self.backend, captured=self.cuda_graph is True)
            self._engine = recurrence, PopulationForward(recurrence, self.cuda_graph)
        return self._engine

    def _run(self, tokens_BT: Tensor, states: States | None, consume: Callable[[slice, slice, Tensor], None]) -> States:
        """Runs the unperturbed model over the tokens.

        consume: gets rows of the batch, a segment, and the outputs [T, B, 1, H] of the last layer there.
        """
        check_tokens_form(tokens_BT)
        if self.bias.device.type == "cpu":
            check_tokens(tokens_BT, self.vocab_size)
        (batch_size, length), device, dtype = tokens_BT.shape, self.bias.device, self.bias.dtype
        if states is None:
            states = self.initial_states(batch_size)
        heads = self.num_layers * self.num_heads
        check_states(self.cell, states, [heads, batch_size, self.head_dim], None, device)
        layers = zip(*(state.chunk(self.num_layers) for state in states), strict=True)
        before = [torch.stack([state.transpose(0, 1) for state in layer]).to(dtype) for layer in layers]
        weights, tokens_BT = self._weights({}), tokens_BT.to(device)
        recurrence, _ = self._engines()
        parts = []
        for rows in split_batch(self.cell, batch_size, self.num_heads, self.head_dim):
            some_BT = tokens_BT[rows]
            steps = segment_length(weights, len(some_BT), length)
            start = [x[:, rows].contiguous() for x in before]
            parts.append(walk(recurrence, Members.of(weights), some_BT, start, dtype, steps, partial(consume, rows)))
        last = [_joined(list(layer), 1) for layer in zip(*parts, strict=True)]
        return tuple(torch.cat([x.transpose(0, 1) for x in state]).contiguous() for state in zip(*last, strict=True))

    def _weights(self, offsets: dict[Tensor, int]) -> RecurrentWeights:
        tensors = [self.get_parameter(name) for name in self._names()]
        return RecurrentWeights.of(self.cell, [offsets.get(p, -1) for p in tensors], tensors, self.residual)

    def _names(self) -> list[str]:
        """The names of the parameters, in order."""
        return [name for name in WEIGHT_NAMES if hasattr(self, name)]

    def _as_recurrent(self) -> list[Tensor]:
        tensors = [(name, self.get_parameter(name)) for name in self._names()]
        return [x.permute(_ORDERS[name]) if name in _ORDERS else x for name, x in tensors]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _arguments_of(model: FlashLM | RecurrentLM) -> dict[str, Any]:
    """Arguments for a model of the same shape. The seed only keeps torch's global random state unused."""
    sizes = {name: getattr(model, name) for name in (*SIZES, *_LAYERS)}
    return {**sizes, "device": model.bias.device, "dtype": model.bias.dtype, "seed": 0}
