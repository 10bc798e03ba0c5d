"""The simplified DNC that Chaubard and Kochenderfer train with CD-RGE.

Shape suffixes: M members, B batch, E embedding, H hidden size, N memory slots, W memory width, R read heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .addressing import next_memory
from .language import States, empty_for
from .member_layers import layer_norm, linear, lstm_cell
from .members import Weights
from .memory import MemoryLM

_INITIAL_MEMORY = 0.1
"""Factor of the position encoding in the initial memory."""

_NORM_EPSILON = 1e-5
"""Added to a variance, as torch's LayerNorm does."""


class PaperDNC(MemoryLM):
    """An LSTM with a memory of N slots that it writes and reads by attention, without usage or links between slots.

    Let e be the embedding of a token and r the R read vectors. Each norm is a LayerNorm with its own parameters, and
    the LSTM's gates are in the order i, f, z, o. A step computes:

        h, c     = LSTM([norm([e; r]); h], c)                    with two biases, as in torch.nn.LSTM
        u        = norm(h)
        k_r, k_w, s, d, a = interface_weight @ u + interface_bias
        w        = sigmoid(s) * softmax(norm(memory) @ norm(k_w))
        memory   = memory * (1 - w sigmoid(d)^T) + w tanh(a)^T
        r        = softmax(norm(memory) @ norm(k_r)) @ memory    for each read head
        logits   = output_weight @ norm([u; r]) + output_bias

    The published code starts from a memory of zeros. Then all slots get the same attention and the same writes, so they
    stay equal and the memory is in effect one vector. Here slot n starts from 0.1 times the position encoding of
    Vaswani et al. (arXiv 1706.03762, section 3.5), sin or cos of n / 10000^(2 floor(k/2) / W) in column k, which is not
    a parameter. The bias of the memory's norm adds the same to the scores of all slots, so it cancels in the softmax.
    It is kept for the published number of parameters, but not computed with.

    Parameters, in `named_parameters()` order, with I = E + R W: embedding [V, E]; input_norm_weight, input_norm_bias
    [I]; controller_weight [4H, I + H]; input_bias, recurrent_bias [4H]; hidden_norm_weight, hidden_norm_bias [H];
    interface_weight [(R + 3) W + 1, H], interface_bias; read_key_norm_weight, read_key_norm_bias,
    write_key_norm_weight, write_key_norm_bias, memory_norm_weight, memory_norm_bias [W]; output_norm_weight,
    output_norm_bias [H + R W]; output_weight [V, H + R W]; output_bias [V]. States of each sequence: h, c [H]; memory
    [N, W]; read_vectors [R, W].

    Arguments and errors are those of `MemoryLM`. memory_width must be at least 2, since a LayerNorm of one number is 0.

    Sources: Chaubard and Kochenderfer, arXiv 2505.17852, and their published code; Graves et al., Nature 538 (2016).
    """

    def _add_parameters(self, empty: Callable[..., nn.Parameter]) -> None:
        hidden, width, interface = self.hidden_size, self.memory_width, sum(self._interface_sizes())
        inputs, outputs = self.embed_dim + self.read_size, hidden + self.read_size
        if width < 2:
            raise ValueError("memory_width must be at least 2: a slot is normalised over its width")
        self.embedding = empty(self.vocab_size, self.embed_dim)
        self.input_norm_weight, self.input_norm_bias = empty(inputs), empty(inputs)
        self.controller_weight = empty(4 * hidden, inputs + hidden)
        self.input_bias, self.recurrent_bias = empty(4 * hidden), empty(4 * hidden)
        self.hidden_norm_weight, self.hidden_norm_bias = empty(hidden), empty(hidden)
        self.interface_weight, self.interface_bias = empty(interface, hidden), empty(interface)
        self.read_key_norm_weight, self.read_key_norm_bias = empty(width), empty(width)
        self.write_key_norm_weight, self.write_key_norm_bias = empty(width), empty(width)
        self.memory_norm_weight, self.memory_norm_bias = empty(width), empty(width)
        self.output_norm_weight, self.output_norm_bias = empty(outputs), empty(outputs)
        self.output_weight, self.output_bias = empty(self.vocab_size, outputs), empty(self.vocab_size)

    @property
    def name(self) -> str:
        return "paper-dnc"

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, (slots, width) = (self.hidden_size,), (self.memory_slots, self.memory_width)
        return {"h": hidden, "c": hidden, "memory": (slots, width), "read_vectors": (self.num_heads, width)}

    @property
    def num_products(self) -> int:
        weights = (self.controller_weight, self.interface_weight, self.output_weight)
        return sum(w.numel() for w in weights) + (2 * self.num_heads + 3) * self.memory_slots * self.memory_width

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new parameters with `generator`, on its device, or from torch's global random state if None.

        As in the published code, the embedding is N(0, 1). The LSTM's two matrices, each part of the interface and the
        output projection are Glorot uniform (Glorot and Bengio, 2010). Norms start as the identity, biases as 0.
        """
        for name, p in self.named_parameters():
            p.fill_(1.0 if name.endswith("norm_weight") else 0.0)
        self.embedding.copy_(empty_for(self.embedding, generator).normal_(generator=generator))
        inputs = self.controller_weight.shape[1] - self.hidden_size
        for weight in (
            *self.controller_weight.split([inputs, self.hidden_size], dim=1),
            *self.interface_weight.split(self._interface_sizes()),
            self.output_weight,
        ):
            bound = math.sqrt(6 / sum(weight.shape))
            weight.copy_(empty_for(weight, generator).uniform_(-bound, bound, generator=generator))

    def initial_states(self, batch_size: int) -> States:
        """The states that sequences start from, each [B, ...]: zeros, except for the memory."""
        h, c, memory, read_vectors = super().initial_states(batch_size)
        column = torch.arange(self.memory_width, dtype=torch.float64, device=memory.device)
        slot = torch.arange(self.memory_slots, dtype=torch.float64, device=memory.device)[:, None]
        angle = slot / 10000 ** ((column - column % 2) / self.memory_width)
        code = torch.where(column % 2 == 0, angle.sin(), angle.cos())
        return h, c, memory + (_INITIAL_MEMORY * code).to(memory.dtype), read_vectors

    def _interface_sizes(self) -> list[int]:
        """Rows of each part of the interface: read keys, write key, write strength, erase vector, write vector."""
        width = self.memory_width
        return [self.num_heads * width, width, 1, width, width]

    def _start(self, weights: Weights, states: Sequence[Tensor]) -> list[Tensor]:
        return [*states, *_normalise(states[2])]

    def _step(self, weights: Weights, x_MBE: Tensor, running: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        w = weights
        h, c, memory, read_vectors, centred, scale_MBN = running
        inputs = torch.cat((x_MBE, read_vectors.flatten(2)), dim=-1)
        inputs = layer_norm(inputs, w["input_norm_weight"], w["input_norm_bias"])
        biases = w["input_bias"] + w["recurrent_bias"]
        h, c = lstm_cell(linear(torch.cat((inputs, h), dim=-1), w["controller_weight"], biases), c)
        hidden = layer_norm(h, w["hidden_norm_weight"], w["hidden_norm_bias"])
        interface = linear(hidden, w["interface_weight"], w["interface_bias"])
        read_keys, write_key, strength, erase, write = interface.split(self._interface_sizes(), dim=-1)

        norm_weight = w["memory_norm_weight"][:, None]
        write_key = layer_norm(write_key, w["write_key_norm_weight"], w["write_key_norm_bias"]) * norm_weight
        scores_MBN = (centred @ write_key[..., None])[..., 0] * scale_MBN
        written_MBN = torch.sigmoid(strength) * torch.softmax(scores_MBN, dim=-1)
        memory = next_memory(memory, written_MBN, torch.sigmoid(erase), torch.tanh(write))
        centred, scale_MBN = _normalise(memory)

        members, batch_size, heads = len(x_MBE), x_MBE.shape[1], self.num_heads
        keys = read_keys.reshape(members, batch_size * heads, -1)
        keys = layer_norm(keys, w["read_key_norm_weight"], w["read_key_norm_bias"]) * norm_weight
        scores_MBRN = keys.view(members, batch_size, heads, -1) @ centred.transpose(2, 3) * scale_MBN[:, :, None]
        read_vectors = torch.softmax(scores_MBRN, dim=-1) @ memory
        outputs = torch.cat((hidden, read_vectors.flatten(2)), dim=-1)
        outputs = layer_norm(outputs, w["output_norm_weight"], w["output_norm_bias"])
        return outputs, [h, c, memory, read_vectors, centred, scale_MBN]


def _normalise(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Each slot minus its mean, [M, B, N, W], and one over its standard deviation, [M, B, N].

    Their product is LayerNorm without weight and bias. torch's LayerNorm is several times slower for many short rows,
    and a step uses the result twice.
    """
    centred = memory - memory.mean(dim=-1, keepdim=True)
    return centred, torch.rsqrt(centred.square().mean(dim=-1) + _NORM_EPSILON)
