"""A language-model LSTM with a block-diagonal (multi-head) recurrence, in plain torch.

Shape suffixes: B batch, T time, V vocabulary, E embedding, H hidden size, N heads, D = H / N head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE_INDEX = -100
"""Target of a position that the loss leaves out: torch's own default `ignore_index`."""

States = tuple[Tensor, Tensor]
"""Hidden state h and cell state c after the last token, each [N, B, D].

`torch.stack((h, c)).transpose(1, 2)[:, :, None]` is FlashRNN's `states` [S=2, B, 1, N, D].
"""


class LSTM(nn.Module):
    """Token embedding, one LSTM layer of N independent heads, output projection to the vocabulary.

    With e the embedding of a token and h, c the states, head n computes (gates in FlashRNN's order i, f, z, o):

        i, f, z, o = input_weight[:, n] @ e + recurrent_weight[:, n] @ h[n] + bias[:, n]
        c[n] = sigmoid(f) * c[n] + sigmoid(i) * tanh(z)
        h[n] = sigmoid(o) * tanh(c[n])

    `recurrent_weight` and `bias` have the layout of FlashRNN's R and b and can be handed to it as they are. With one
    head this is `torch.nn.LSTM` with its two biases added into one.

    Parameters, in `named_parameters()` order: embedding [V, E]; input_weight [4, N, D, E], without a bias of its own;
    recurrent_weight [4, N, D, D] (gate, head, new unit, previous unit); bias [4, N, D]; output_weight [V, H];
    output_bias [V].

    vocab_size, embed_dim: V and E.
    hidden_size: H, over all heads together.
    num_heads: N, must divide H; with 1 the recurrence is dense.
    seed: of the initial parameters, which are then the same on every device and leave torch's global random state
        alone; None draws them from that state.
    device, dtype: of the parameters; any floating dtype that the device can multiply.

    Raises ValueError if a size is not a positive integer, or num_heads does not divide hidden_size.

    Sources: FlashRNN (Pöppel, Beck and Hochreiter, arXiv 2412.07752) for the recurrence; Chaubard and Kochenderfer
    (arXiv 2505.17852) train it with CD-RGE.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        num_heads: int = 1,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "embed_dim": embed_dim, "hidden_size": hidden_size, "num_heads": num_heads}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.embedding = empty(vocab_size, embed_dim)
        self.input_weight = empty(4, num_heads, self.head_dim, embed_dim)
        self.recurrent_weight = empty(4, num_heads, self.head_dim, self.head_dim)
        self.bias = empty(4, num_heads, self.head_dim)
        self.output_weight = empty(vocab_size, hidden_size)
        self.output_bias = empty(vocab_size)
        self.reset_parameters(None if seed is None else torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new parameters, with `generator` on its own device; None means torch's global random state.

        The embedding is N(0, 1); matrices are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), with fan_in E for the input
        projection, D for the recurrence and H for the output projection; biases are 0, the forget gate's 1.
        """

        def unfilled(weight: Tensor) -> Tensor:
            return torch.empty(weight.shape, device=weight.device if generator is None else generator.device)

        self.embedding.copy_(unfilled(self.embedding).normal_(generator=generator))
        for weight, fan_in in (
            (self.input_weight, self.embed_dim),
            (self.recurrent_weight, self.head_dim),
            (self.output_weight, self.hidden_size),
        ):
            bound = 1 / math.sqrt(fan_in)
            weight.copy_(unfilled(weight).uniform_(-bound, bound, generator=generator))
        self.output_bias.zero_()
        self.bias.zero_()
        self.bias[1].fill_(1.0)  # an open forget gate carries the state over many tokens from the first step on

    def initial_states(self, batch_size: int) -> States:
        """The zero states (h, c), each [N, B, D], that a sequence starts from."""
        h_NBD = self.bias.new_zeros(self.num_heads, batch_size, self.head_dim)
        return h_NBD, torch.zeros_like(h_NBD)

    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] of the token after each token, in the parameters' dtype, and the states after the last.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        states: (h, c) after an earlier segment of the same sequences, each [N, B, D]; None starts from zeros.

        Raises ValueError if the tokens are not integers, not of rank 2, empty, or out of range (the last on the CPU;
        other devices report it in their own way), or the states' shape does not fit.
        """
        hidden_TBH, states = self._hidden(tokens_BT, states)
        return self._logits(hidden_TBH).transpose(0, 1), states

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, from zero states: float64 scalar.

        The mean is taken in float64: a zero-order step lives on differences of losses, and a float32 mean alone blurs
        them some 50 times as much as all the rest of a float32 forward does.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        targets_BT: int64 [B, T], values in [0, V), or -100 where a position is not scored. If none is, the loss is NaN,
            as in torch.

        Raises ValueError as `forward` does, and if the targets' shape, dtype or range is wrong.
        """
        if targets_BT.shape != tokens_BT.shape or targets_BT.dtype != torch.int64:
            raise ValueError(
                f"targets must be int64 of the tokens' shape {list(tokens_BT.shape)}, "
                f"not {targets_BT.dtype} of shape {list(targets_BT.shape)}"
            )
        hidden_TBH, _ = self._hidden(tokens_BT, None)
        logits_XV, targets_X = self._logits(hidden_TBH).flatten(0, 1), targets_BT.t().flatten()
        if logits_XV.dtype in (torch.bfloat16, torch.float16):
            logits_XV = logits_XV.float()
        try:
            nats_X = F.cross_entropy(logits_XV, targets_X, ignore_index=IGNORE_INDEX, reduction="none")
        except IndexError as error:
            raise ValueError(
                f"targets must lie in [0, {self.vocab_size}) or be {IGNORE_INDEX}, "
                f"but range from {int(targets_BT.min())} to {int(targets_BT.max())}"
            ) from error
        return nats_X.sum(dtype=torch.float64) / (targets_X != IGNORE_INDEX).sum()

    def extra_repr(self) -> str:
        return (
            f"vocab_size={self.vocab_size}, embed_dim={self.embed_dim}, "
            f"hidden_size={self.hidden_size}, num_heads={self.num_heads}"
        )

    def _hidden(self, tokens_BT: Tensor, states: States | None) -> tuple[Tensor, States]:
        """Hidden states after every token [T, B, H], and all states after the last."""
        embedded_TBE = self._embed(tokens_BT)
        batch_size = embedded_TBE.shape[1]
        h_NBD, c_NBD = self.initial_states(batch_size) if states is None else states
        expected = [self.num_heads, batch_size, self.head_dim]
        for name, state in (("h", h_NBD), ("c", c_NBD)):
            if list(state.shape) != expected:
                raise ValueError(f"state {name} must have shape [N, B, D] = {expected}, not {list(state.shape)}")

        # The heads share nothing but the input, so each is an LSTM of its own. torch's LSTM is one fused call for all
        # time steps (oneDNN, cuDNN); a loop over them with one batched product each takes 1.3 to 4 times as long.
        no_second_bias = self.bias.new_zeros(4 * self.head_dim)
        outputs, last_h, last_c = [], [], []
        for n in range(self.num_heads):
            weights = (
                self.input_weight[:, n].flatten(0, 1),
                self.recurrent_weight[:, n].flatten(0, 1),
                self.bias[:, n].flatten(),
                no_second_bias,
            )
            states_1BD = (h_NBD[n : n + 1], c_NBD[n : n + 1])
            output_TBD, h_1BD, c_1BD = torch.lstm(
                embedded_TBE, states_1BD, weights, True, 1, 0.0, False, False, False
            )  # has_biases, num_layers, dropout, train, bidirectional, batch_first
            outputs.append(output_TBD)
            last_h.append(h_1BD)
            last_c.append(c_1BD)
        return torch.cat(outputs, dim=-1), (torch.cat(last_h), torch.cat(last_c))

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings of the tokens, time first [T, B, E]; refuses what is not a batch of tokens."""
        if tokens_BT.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens must be int64 or int32, not {tokens_BT.dtype}")
        if tokens_BT.dim() != 2 or tokens_BT.numel() == 0:
            raise ValueError(f"tokens must be a non-empty [B, T] tensor, not of shape {list(tokens_BT.shape)}")
        try:
            return F.embedding(tokens_BT.t(), self.embedding)
        except IndexError as error:
            raise ValueError(
                f"tokens must lie in [0, {self.vocab_size}), "
                f"but range from {int(tokens_BT.min())} to {int(tokens_BT.max())}"
            ) from error

    def _logits(self, hidden: Tensor) -> Tensor:
        """The output projection of hidden states [..., H]: [..., V]."""
        return F.linear(hidden, self.output_weight, self.output_bias)
