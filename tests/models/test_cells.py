"""What each cell computes: against torch.nn's layers, FlashRNN's plain torch backend, and the formulas written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.recurrent import Shape, each_cell, make_model, tokens_for, written_out
from zo_kernels.backends.base import CELLS
from zo_kernels.models import GRU, LSTM, Elman, RecurrentLM, States


def random_states(model: RecurrentLM, batch: int) -> States:
    return tuple(torch.randn_like(state) for state in model.initial_states(batch))


def torch_twin(model: RecurrentLM) -> torch.nn.RNNBase:
    """torch.nn's layer with the weights of a one-head model."""
    rows = {
        LSTM: ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], None),
        GRU: ([0, 1, 2], [1, 2, 0], [1, 2, 3], 0),  # torch's order is r, z, n; its second bias for n is that of g
        Elman: ([0], [0], [0], None),
    }
    kind = {LSTM: torch.nn.LSTM, GRU: torch.nn.GRU, Elman: torch.nn.RNN}[type(model)]
    twin = kind(model.embed_dim, model.hidden_size, batch_first=True, dtype=model.embedding.dtype)
    input_rows, recurrent_rows, bias_rows, second_bias = rows[type(model)]
    with torch.no_grad():
        twin.weight_ih_l0.copy_(model.input_weight[input_rows].flatten(0, 2))
        twin.weight_hh_l0.copy_(model.recurrent_weight[recurrent_rows].flatten(0, 2))
        twin.bias_ih_l0.copy_(model.bias[bias_rows].flatten())
        twin.bias_hh_l0.zero_()
        if second_bias is not None:
            twin.bias_hh_l0[-model.hidden_size :] = model.bias[second_bias, 0]
    return twin


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_equals_torch(cell: str, dtype: torch.dtype) -> None:
    model = make_model(cell, Shape(11, 5, 1, 12, 3, 7), dtype)
    tokens, start = tokens_for(model, 3, 7), random_states(model, 3)
    logits, last = model(tokens, start)
    hidden, last_twin = torch_twin(model)(
        F.embedding(tokens, model.embedding), start if isinstance(model, LSTM) else start[0]
    )
    torch.testing.assert_close(logits, F.linear(hidden, model.output_weight, model.output_bias))
    torch.testing.assert_close(last, last_twin if isinstance(model, LSTM) else (last_twin,))
    assert logits.dtype == dtype


@each_cell
@settings(max_examples=20, deadline=None)
@given(
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    batch=st.integers(1, 4),
    time=st.integers(1, 6),
    embed_dim=st.integers(1, 6),
)
def test_equals_flashrnn_vanilla(
    cell: str, num_heads: int, head_dim: int, batch: int, time: int, embed_dim: int
) -> None:
    flashrnn = pytest.importorskip("flashrnn").flashrnn  # a dependency on Linux only
    model = make_model(cell, Shape(7, embed_dim, num_heads, head_dim, batch, time))
    tokens, states = tokens_for(model, batch, time), random_states(model, batch)
    flashrnn_states = torch.stack(states).transpose(1, 2)[:, :, None]  # as the documentation of States says
    with torch.no_grad():
        wx = torch.einsum("bte,gnde->btgnd", F.embedding(tokens, model.embedding), model.input_weight)
        output, last = flashrnn(
            wx, model.recurrent_weight, model.bias, flashrnn_states, function=cell, backend="vanilla", dtype="float32"
        )
        expected = F.linear(output[0].reshape(batch, time, -1), model.output_weight, model.output_bias)
        logits, states = model(tokens, states)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(torch.stack(states).transpose(1, 2)[:, :, None], last)


@each_cell
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("layers", [{}, {"layers": 2}, {"layers": 3, "norm": True, "residual": True}])
def test_gradients_equal_those_of_the_written_out_recurrence(
    cell: str, num_heads: int, layers: dict[str, int | bool]
) -> None:
    model = make_model(cell, Shape(7, 3, num_heads, 8 // num_heads, 2, 5, **layers), torch.float64)
    tokens, targets = tokens_for(model, 2, 5), tokens_for(model, 2, 5, seed=1)
    gradients = torch.autograd.grad(model.loss(tokens, targets), list(model.parameters()))

    states, outputs = model.initial_states(2), []
    for t in range(5):
        output, states = written_out(model, F.embedding(tokens[:, t], model.embedding), states)
        outputs.append(output)
    logits = F.linear(torch.stack(outputs, 1), model.output_weight, model.output_bias)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for got, expected in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("cell", "input_rows", "recurrent_rows", "biases"), [("lstm", 4, 4, 4), ("gru", 3, 3, 4), ("elman", 1, 1, 1)]
)
def test_parameter_shapes_order_and_count(cell: str, input_rows: int, recurrent_rows: int, biases: int) -> None:
    model = make_model(cell, Shape(65, 32, 4, 32, 1, 1))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert list(shapes.items()) == [
        ("embedding", (65, 32)),
        ("input_weight", (input_rows, 4, 32, 32)),
        ("recurrent_weight", (recurrent_rows, 4, 32, 32)),
        ("bias", (biases, 4, 32)),
        ("output_weight", (65, 128)),
        ("output_bias", (65,)),
    ]
    upper = make_model(cell, Shape(65, 32, 4, 32, 1, 1, layers=3, norm=True))
    shapes_above = {name: tuple(parameter.shape) for name, parameter in upper.named_parameters()}
    assert list(shapes_above.items())[6:] == [
        ("upper_input_weight", (2, input_rows, 4, 32, 128)),
        ("upper_recurrent_weight", (2, recurrent_rows, 4, 32, 32)),
        ("upper_bias", (2, biases, 4, 32)),
        ("norm_weight", (3, 128)),
        ("norm_bias", (3, 128)),
    ]
    rows = input_rows * 32 + recurrent_rows * 32 + biases
    assert sum(p.numel() for p in model.parameters()) == 65 * 32 + 128 * rows + 65 * 128 + 65
    assert len(model.initial_states(3)) == CELLS[cell].states == (2 if cell == "lstm" else 1)
    assert model.num_products == (input_rows + recurrent_rows) * 128 * 32 + 65 * 128


@each_cell
def test_initialisation_is_as_documented(cell: str) -> None:
    model = make_model(cell, Shape(400, 16, 4, 16, 1, 1))
    model.reset_parameters(torch.Generator().manual_seed(0))
    forget = 1 if cell == "lstm" else None
    for row, bias in enumerate(model.bias):
        assert torch.equal(bias, torch.full_like(bias, float(row == forget))), row
    assert model.output_bias.abs().max() == 0
    assert model.embedding.std().item() == pytest.approx(1, rel=0.05)
    for name, fan_in in (("input_weight", 16), ("recurrent_weight", 16), ("output_weight", 64)):
        weight = model.get_parameter(name)
        assert weight.abs().max().item() <= fan_in**-0.5
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
