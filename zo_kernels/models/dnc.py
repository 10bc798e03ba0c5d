"""The differentiable neural computer (DNC) of Graves et al.

Shape suffixes: M members, B batch, E embedding, H hidden size, N memory slots, W memory width, R read heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import addressing
from .language import empty_for
from .member_layers import linear, lstm_cell
from .members import Weights
from .memory import MemoryLM


class DNC(MemoryLM):
    """An LSTM controller with a memory that it addresses by content, by free slots and by the order of writing.

    Let e be the embedding of a token and r the R read vectors of the last step. A step computes:

        h, c   = LSTM([e; r; h], c)                      gates in the order i, f, z, o
        xi     = interface_weight @ h + interface_bias
        memory = write(memory, xi)                       to slots chosen by content, or to free slots
        r      = read(memory, xi)                        from slots chosen by content, or next in the order of writing
        logits = output_weight @ [h; r] + output_bias

    `zo_kernels.models.addressing` has the equations of the memory.

    xi holds, in this order, R read keys [W] and strengths, the write key [W] and strength, the erase vector [W], the
    write vector [W], R free gates, the allocation gate, the write gate and R read modes [3] (backward, content,
    forward). This is the paper's model with one controller layer, and with biases added to interface and output.
    Memory, usage and links start from zeros. The first writes go to the slots in order, so the rows become different.

    Parameters, in `named_parameters()` order: embedding [V, E]; controller_weight [4H, E + R W + H]; controller_bias
    [4H]; interface_weight [R W + 3 W + 5 R + 3, H]; interface_bias; output_weight [V, H + R W]; output_bias [V].
    States of each sequence: h, c [H]; memory [N, W]; usage, precedence [N]; link [N, N]; write_weights [N];
    read_weights [R, N]; read_vectors [R, W].

    Arguments and errors are those of `MemoryLM`.

    Source: Graves et al., "Hybrid computing using a neural network with dynamic external memory", Nature 538 (2016).
    """

    def _add_parameters(self, empty: Callable[..., nn.Parameter]) -> None:
        hidden, reads, interface = self.hidden_size, self.read_size, sum(self._interface_sizes())
        self.embedding = empty(self.vocab_size, self.embed_dim)
        self.controller_weight = empty(4 * hidden, self.embed_dim + reads + hidden)
        self.controller_bias = empty(4 * hidden)
        self.interface_weight, self.interface_bias = empty(interface, hidden), empty(interface)
        self.output_weight, self.output_bias = empty(self.vocab_size, hidden + reads), empty(self.vocab_size)

    @property
    def name(self) -> str:
        return "dnc"

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        slots, width, heads = self.memory_slots, self.memory_width, self.num_heads
        return {
            "h": (self.hidden_size,),
            "c": (self.hidden_size,),
            "memory": (slots, width),
            "usage": (slots,),
            "precedence": (slots,),
            "link": (slots, slots),
            "write_weights": (slots,),
            "read_weights": (heads, slots),
            "read_vectors": (heads, width),
        }

    @property
    def num_products(self) -> int:
        weights = (self.controller_weight, self.interface_weight, self.output_weight)
        memory = (2 * self.num_heads + 4) * self.memory_slots * self.memory_width
        return sum(w.numel() for w in weights) + memory + (2 * self.num_heads + 2) * self.memory_slots**2

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new parameters with `generator`, on its device, or from torch's global random state if None.

        As in `RecurrentLM`, the embedding is N(0, 1), matrices are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), and biases are
        0, except that the forget gate's are 1.
        """
        self.embedding.copy_(empty_for(self.embedding, generator).normal_(generator=generator))
        for weight in (self.controller_weight, self.interface_weight, self.output_weight):
            bound = 1 / math.sqrt(weight.shape[1])
            weight.copy_(empty_for(weight, generator).uniform_(-bound, bound, generator=generator))
        for bias in (self.controller_bias, self.interface_bias, self.output_bias):
            bias.zero_()
        self.controller_bias[self.hidden_size : 2 * self.hidden_size].fill_(1.0)

    def _interface_sizes(self) -> list[int]:
        """Number of rows of each part of the interface, in order."""
        heads, width = self.num_heads, self.memory_width
        return [heads * width, heads, width, 1, width, width, heads, 1, 1, 3 * heads]

    def _start(self, weights: Weights, states: Sequence[Tensor]) -> list[Tensor]:
        return [*states, addressing.norms(states[2])]

    def _step(self, weights: Weights, x_MBE: Tensor, running: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        w = weights
        h, c, memory, usage, precedence, link, written, read, vectors, norms = running
        gates = linear(torch.cat((x_MBE, vectors.flatten(2), h), dim=-1), w["controller_weight"], w["controller_bias"])
        h, c = lstm_cell(gates, c)
        interface = linear(h, w["interface_weight"], w["interface_bias"]).split(self._interface_sizes(), dim=-1)
        read_keys, read_strengths, write_key, write_strength, erase, write, *gates_and_modes = interface
        free_gates, allocation_gate, write_gate, modes = gates_and_modes

        usage = addressing.next_usage(usage, written, read, torch.sigmoid(free_gates))
        key, strength = write_key[:, :, None], addressing.oneplus(write_strength)
        content = addressing.content_weights(key, strength, memory, norms)[:, :, 0]
        allocation = addressing.allocation_weights(usage)
        written = addressing.write_weights(
            content, allocation, torch.sigmoid(write_gate), torch.sigmoid(allocation_gate)
        )
        memory = addressing.next_memory(memory, written, torch.sigmoid(erase), write)
        norms = addressing.norms(memory)
        link = addressing.next_link(link, precedence, written)
        precedence = addressing.next_precedence(precedence, written)

        keys = read_keys.unflatten(-1, (self.num_heads, self.memory_width))
        content = addressing.content_weights(keys, addressing.oneplus(read_strengths), memory, norms)
        modes = torch.softmax(modes.unflatten(-1, (self.num_heads, 3)), dim=-1)
        read = addressing.read_weights(link, read, content, modes)
        vectors = read @ memory
        output = torch.cat((h, vectors.flatten(2)), dim=-1)
        return output, [h, c, memory, usage, precedence, link, written, read, vectors, norms]
