"""Base class of the language models in plain torch whose population forward is a kernel.

Shape suffixes: B batch, T time, V vocabulary, E embedding, L layers, H hidden size, N heads, D = H / N head size,
n probes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backends import backend_for
from ..backends.base import CELLS, NORM_EPS, CellShape, RecurrentWeights
from ..ops import recurrent_forward, recurrent_logits, recurrent_nats, recurrent_score
from ..ops.checks import IGNORE_INDEX, check_targets, check_targets_form, check_tokens, check_tokens_form
from ..params.space import flat_offsets
from .activity import ActivityBatch
from .language import CALL_WORK, States
from .recurrent_layer import RecurrentLayerLM


class RecurrentLM(RecurrentLayerLM):
    """Token embedding, L recurrent layers of N independent heads each, output projection to the vocabulary.

    Base class of LSTM, GRU and Elman, which define what a head computes. `recurrent_weight` and `bias` have the layout
    of FlashRNN's R and b.

    Parameters, in `named_parameters()` order: embedding [V, E]; input_weight [I, N, D, E]; recurrent_weight [R, N, D,
    D] (gate, head, new unit, previous unit); bias [G, N, D]; output_weight [V, H]; output_bias [V]. I, R and G are the
    cell's numbers of input rows, recurrent rows and biases. If L > 1, those of the other layers follow:
    upper_input_weight [L - 1, I, N, D, H]; upper_recurrent_weight [L - 1, R, N, D, D]; upper_bias [L - 1, G, N, D].
    With layer norm norm_weight [L, H] and norm_bias [L, H] are the last.

    The first layer reads the embedding, the others the output of the layer before. The output of a layer is its hidden
    states h [H]: with layer norm, (h - mean) / sqrt(variance + 1e-5) * norm_weight + norm_bias; with residual
    connections, from the second layer on, plus the input of the layer. The recurrence sees h itself.

    vocab_size, embed_dim: V and E.
    hidden_size: H, the size of all heads of a layer together.
    num_heads: N, which must divide H; with 1 the recurrence is dense.
    num_layers: L.
    layer_norm: whether the output of each layer is normalized.
    residual: whether each layer after the first adds its input to its output.
    seed: seed of the initial parameters, which are then the same on every device and do not use torch's global random
        state; None uses that state.
    device, dtype: device and dtype of the parameters; any floating dtype that the device can multiply.

    Raises ValueError if a size is not a positive integer, num_heads does not divide hidden_size, or there are residual
    connections with a single layer.

    Sources: FlashRNN (Pöppel, Beck and Hochreiter, arXiv 2412.07752) for the recurrence; Chaubard and Kochenderfer
    (arXiv 2505.17852) for training it with CD-RGE.
    """

    population_forward: str = "auto"
    """Who computes populations, as in `zo_kernels.ops.recurrent_nats`: "auto", "kernel" or "batched". May be set."""

    def __init__(
        self,
        vocab_size: int,
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
        super().__init__()
        self._set_layer_sizes(vocab_size, embed_dim, hidden_size, num_heads, num_layers, layer_norm, residual)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        shape = self._cell_shape()
        self.embedding = empty(vocab_size, embed_dim)
        self.input_weight = empty(shape.input_rows, num_heads, self.head_dim, embed_dim)
        self.recurrent_weight = empty(shape.recurrent_rows, num_heads, self.head_dim, self.head_dim)
        self.bias = empty(shape.biases, num_heads, self.head_dim)
        self.output_weight = empty(vocab_size, hidden_size)
        self.output_bias = empty(vocab_size)
        if num_layers > 1:
            above = num_layers - 1
            self.upper_input_weight = empty(above, shape.input_rows, num_heads, self.head_dim, hidden_size)
            self.upper_recurrent_weight = empty(above, shape.recurrent_rows, num_heads, self.head_dim, self.head_dim)
            self.upper_bias = empty(above, shape.biases, num_heads, self.head_dim)
        if layer_norm:
            self.norm_weight = empty(num_layers, hidden_size)
            self.norm_bias = empty(num_layers, hidden_size)
        self.reset_parameters(None if seed is None else torch.Generator().manual_seed(seed))

    def _cell_shape(self) -> CellShape:
        return CELLS[self.cell]

    def _as_recurrent(self) -> list[Tensor]:
        first = self.embedding, self.input_weight, self.recurrent_weight, self.bias
        return [*first, self.output_weight, self.output_bias, *self._upper(), *self._norm()]

    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] for the token after each position, in the parameters' dtype, and the states after the last.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        states: the states after an earlier segment of the same sequences, each [L * N, B, D]; None starts from zeros.

        Raises ValueError if the tokens are not integers, not of rank 2, empty, or out of range, or if the shape of the
        states is wrong. Devices other than the CPU report tokens out of range in their own way.
        """
        output_TBH, states = self._outputs(tokens_BT, states)
        return self._logits(output_TBH).transpose(0, 1), states

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, from zero states: float64 scalar.

        The mean is taken in float64, because a zero-order step uses small differences of losses. A float32 mean would
        add about 50 times the rounding error of the rest of a float32 forward.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        targets_BT: int64 [B, T], values in [0, V), or -100 at positions that are not scored. If no position is scored,
            the loss is NaN, as in torch.

        Raises ValueError as `forward` does, and if the targets' shape, dtype or range is wrong.
        """
        check_targets_form(tokens_BT, targets_BT)
        output_TBH, _ = self._outputs(tokens_BT, None)
        logits_XV, targets_X = self._logits(output_TBH).flatten(0, 1), targets_BT.t().flatten()
        if logits_XV.dtype in (torch.bfloat16, torch.float16):
            logits_XV = logits_XV.float()
        try:
            nats_X = F.cross_entropy(logits_XV, targets_X, ignore_index=IGNORE_INDEX, reduction="none")
        except IndexError:  # torch checks anyway; checking first would take a small model 3% of its time
            check_targets(tokens_BT, targets_BT, self.vocab_size)
            raise
        return nats_X.sum(dtype=torch.float64) / (targets_X != IGNORE_INDEX).sum()

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

        On the CPU a kernel evaluates all probes in one call, without perturbed copies of the model, in memory that does
        not grow with T; float64 parameters use the slow reference. On a GPU torch evaluates one chunk of probes at a
        time, with perturbed copies in reused memory, and in bfloat16 a kernel does. `population_forward` asks for one
        of these ways. See `zo_kernels.ops.recurrent_nats` for the error of bfloat16.
        """
        weights, how = self._weights(), self.population_forward
        return recurrent_nats(weights, tokens_BT, targets_BT, seeds, eps, states, precision, how)

    def forward_name(self, batch_size: int, precision: str = "float32") -> str:
        """See `LanguageModel.forward_name` and `zo_kernels.ops.recurrent_forward`."""
        return recurrent_forward(self._weights(perturbed=False), batch_size, precision, self.population_forward)

    def activity(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        credit_length: int | None = None,
        local_gradient: bool = False,
        micro_batch_size: int | None = None,
        states: States | None = None,
    ) -> ActivityBatch:
        """The loss on this batch for `zo_kernels.optim.ActivityPerturbation.step`.

        credit_length, local_gradient: as for `zo_kernels.ops.recurrent_activity`.
        micro_batch_size: number of sequences evaluated at once; None means all. It changes results by rounding only.
        states: states before the first token, as `forward` returns them; None starts from zeros. They are not changed.

        Raises the errors of `loss`, and ValueError for a model with several layers or a layer norm, if a size is below
        1, no position is scored, or the states are of another batch or model.
        """
        return ActivityBatch(self, tokens_BT, targets_BT, credit_length, local_gradient, micro_batch_size, states)

    def _scored_at_once(self, batch_size: int) -> int:
        if not self._has_kernel():
            return super()._scored_at_once(batch_size)
        return max(1, int(CALL_WORK / (batch_size * self.num_products)))

    def _score(self, tokens_BT: Tensor, targets_BT: Tensor, states: States) -> tuple[float, int, States]:
        if not self._has_kernel():
            return super()._score(tokens_BT, targets_BT, states)
        dtype = self.wide_dtype
        carried = tuple(state.detach().to(dtype, copy=True).contiguous() for state in states)
        nats, correct = recurrent_score(self._weights(perturbed=False), tokens_BT, targets_BT, carried)
        return float(nats), int(correct), carried

    def _has_kernel(self) -> bool:
        device, dtype = self.device.type, self.wide_dtype
        return device == "cpu" and dtype == torch.float32 and backend_for(device).fused_forward

    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, V] after the last token, float32 (float64 if the parameters are), and the states there.

        Use it to generate. It runs the kernel of `population_loss`, in memory that does not grow with T. Raises the
        errors of `forward`.
        """
        batch_size = tokens_BT.shape[0] if tokens_BT.dim() == 2 else 1
        dtype = torch.float64 if self.bias.dtype == torch.float64 else torch.float32
        states = self.initial_states(batch_size) if states is None else states
        carried = tuple(state.detach().to(dtype, copy=True).contiguous() for state in states)
        return recurrent_logits(self._weights(perturbed=False), tokens_BT, carried), carried

    def _weights(self, *, perturbed: bool = True) -> RecurrentWeights:
        tensors = self._as_recurrent()
        offsets = flat_offsets(self) if perturbed else {}
        return RecurrentWeights.of(self.cell, [offsets.get(p, -1) for p in tensors], tensors, self.residual)

    def _upper(self) -> tuple[Tensor, ...]:
        """The weights of the layers after the first."""
        if self.num_layers == 1:
            return ()
        return self.upper_input_weight, self.upper_recurrent_weight, self.upper_bias

    def _norm(self) -> tuple[Tensor, ...]:
        return (self.norm_weight, self.norm_bias) if self.layer_norm else ()

    def extra_repr(self) -> str:
        return (
            f"vocab_size={self.vocab_size}, embed_dim={self.embed_dim}, "
            f"hidden_size={self.hidden_size}, num_heads={self.num_heads}, num_layers={self.num_layers}, "
            f"layer_norm={self.layer_norm}, residual={self.residual}"
        )

    def _outputs(self, tokens_BT: Tensor, states: States | None) -> tuple[Tensor, States]:
        """The outputs of the last layer after every token, [T, B, H], and all states after the last token."""
        x_TBK = self._embed(tokens_BT)
        batch_size = x_TBK.shape[1]
        if states is None:
            states = self.initial_states(batch_size)
        count = self._cell_shape().states
        if len(states) != count:
            raise ValueError(f"the cell {self.cell} has {count} states, but {len(states)} were given")
        expected = [self.num_layers * self.num_heads, batch_size, self.head_dim]
        for name, state in zip("hc", states, strict=False):
            if list(state.shape) != expected:
                raise ValueError(f"state {name} must have shape [L * N, B, D] = {expected}, not {list(state.shape)}")

        last: list[States] = []
        for layer in range(self.num_layers):
            below_TBK, (x_TBK, heads) = x_TBK, self._run_layer(layer, x_TBK, states)
            last += heads
            if self.layer_norm:
                x_TBK = F.layer_norm(x_TBK, x_TBK.shape[2:], self.norm_weight[layer], self.norm_bias[layer], NORM_EPS)
            if self.residual and layer > 0:
                x_TBK = x_TBK + below_TBK
        return x_TBK, tuple(torch.cat(heads) for heads in zip(*last, strict=True))

    def _run_layer(self, layer: int, x_TBK: Tensor, states: States) -> tuple[Tensor, list[States]]:
        """The hidden states [T, B, H] of a layer after every input, and the states of each of its heads in the end."""
        input_weight, recurrent_weight, bias = self.input_weight, self.recurrent_weight, self.bias
        if layer > 0:
            input_weight, recurrent_weight, bias = (weight[layer - 1] for weight in self._upper())
        # The heads share only the input, so each is a layer of its own. torch's layer is one fused call for all time
        # steps (oneDNN, cuDNN); a loop over time with one batched product per step takes 1.3 to 4 times as long.
        outputs, last = [], []
        for n in range(self.num_heads):
            head = layer * self.num_heads + n
            of_head = tuple(state[head : head + 1] for state in states)
            output_TBD, after = self._run_head(input_weight[:, n], recurrent_weight[:, n], bias[:, n], x_TBK, of_head)
            outputs.append(output_TBD)
            last.append(after)
        return torch.cat(outputs, dim=-1), last

    @abstractmethod
    def _run_head(
        self, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor, x_TBK: Tensor, states_1BD: States
    ) -> tuple[Tensor, States]:
        """Runs a head: hidden states [T, B, D] after every input, and the states after the last, each [1, B, D].

        input_weight: [I, D, K]. recurrent_weight: [R, D, D]. bias: [G, D].
        """

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings of the tokens, [T, B, E]. Raises ValueError if the tokens are wrong."""
        check_tokens_form(tokens_BT)
        try:
            return F.embedding(tokens_BT.t(), self.embedding)
        except IndexError:
            check_tokens(tokens_BT, self.vocab_size)
            raise

    def _logits(self, hidden: Tensor) -> Tensor:
        """Projects hidden states [..., H] to logits [..., V]."""
        return F.linear(hidden, self.output_weight, self.output_bias)
