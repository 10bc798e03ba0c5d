"""The language models LSTM, GRU and Elman, which differ in their cell.

The docstrings say what the first layer computes; in the others e is the output of the layer before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import RecurrentLM
from .language import States


class LSTM(RecurrentLM):
    """A language model with an LSTM layer. Its parameters are those of `RecurrentLM` with I = R = G = 4 rows.

    Let e be the embedding of a token and h, c the states. Head n computes (gates in FlashRNN's order i, f, z, o):

        i, f, z, o = input_weight[:, n] @ e + recurrent_weight[:, n] @ h[n] + bias[:, n]
        c[n] = sigmoid(f) * c[n] + sigmoid(i) * tanh(z)
        h[n] = sigmoid(o) * tanh(c[n])

    With one head this is `torch.nn.LSTM` with the sum of its two biases as bias.
    """

    cell = "lstm"

    def _run_head(
        self, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor, x_TBK: Tensor, states_1BD: States
    ) -> tuple[Tensor, States]:
        weights = (
            input_weight.flatten(0, 1),
            recurrent_weight.flatten(0, 1),
            bias.flatten(),
            bias.new_zeros(bias.numel()),
        )
        output_TBD, h_1BD, c_1BD = torch.lstm(x_TBK, states_1BD, weights, *_layer())
        return output_TBD, (h_1BD, c_1BD)


class GRU(RecurrentLM):
    """A language model with a GRU layer. Its parameters are those of `RecurrentLM` with I = 3, R = 3 and G = 4 rows.

    Let e be the embedding of a token and h the state. Head n computes (rows in FlashRNN's order: recurrent g, r, z;
    input r, z, n; bias g, r, z, n):

        g = recurrent_weight[0, n] @ h[n] + bias[0, n]
        r, z = input_weight[:2, n] @ e + recurrent_weight[1:, n] @ h[n] + bias[1:3, n]
        h[n] = sigmoid(z) * h[n] + (1 - sigmoid(z)) * tanh(input_weight[2, n] @ e + bias[3, n] + sigmoid(r) * g)

    With one head this is `torch.nn.GRU` with its rows in another order.
    """

    cell = "gru"

    def _run_head(
        self, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor, x_TBK: Tensor, states_1BD: States
    ) -> tuple[Tensor, States]:
        g, r, z = recurrent_weight
        bias_g, bias_r, bias_z, bias_n = bias
        nothing = torch.zeros_like(bias_g)
        weights = (
            input_weight.flatten(0, 1),
            torch.cat((r, z, g)),
            torch.cat((bias_r, bias_z, bias_n)),
            torch.cat((nothing, nothing, bias_g)),
        )
        output_TBD, h_1BD = torch.gru(x_TBK, states_1BD[0], weights, *_layer())
        return output_TBD, (h_1BD,)


class Elman(RecurrentLM):
    """A language model with an Elman (plain tanh) layer. Its parameters are those of `RecurrentLM` with I = R = G = 1.

    Let e be the embedding of a token and h the state. Head n computes:

        h[n] = tanh(input_weight[0, n] @ e + recurrent_weight[0, n] @ h[n] + bias[0, n])

    With one head this is `torch.nn.RNN` with the sum of its two biases as bias.
    """

    cell = "elman"

    def _run_head(
        self, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor, x_TBK: Tensor, states_1BD: States
    ) -> tuple[Tensor, States]:
        weights = (input_weight[0], recurrent_weight[0], bias[0], torch.zeros_like(bias[0]))
        output_TBD, h_1BD = torch.rnn_tanh(x_TBK, states_1BD[0], weights, *_layer())
        return output_TBD, (h_1BD,)


def _layer() -> tuple[bool, int, float, bool, bool, bool]:
    """The arguments of torch.lstm, torch.gru and torch.rnn_tanh that follow the weights.

    They are has_biases, num_layers, dropout, train, bidirectional and batch_first. cuDNN keeps what a backward pass
    needs only if train is True.
    """
    return True, 1, 0.0, torch.is_grad_enabled(), False, False


MODELS: dict[str, type[RecurrentLM]] = {model.cell: model for model in (LSTM, GRU, Elman)}
"""The models by the names of their cells."""
