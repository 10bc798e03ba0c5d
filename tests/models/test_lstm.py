"""zo_kernels.models.LSTM against torch.nn.LSTM, FlashRNN's plain torch backend, and its own documentation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from zo_kernels.models import LSTM


def tokens_for(model: LSTM, batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(model.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def randomised(model: LSTM) -> LSTM:
    """The model with every parameter non-trivial, biases too."""
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def torch_twin(model: LSTM) -> torch.nn.LSTM:
    """torch.nn.LSTM with the weights of a one-head model."""
    twin = torch.nn.LSTM(model.embed_dim, model.hidden_size, batch_first=True, dtype=model.embedding.dtype)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(model.input_weight.reshape(4 * model.hidden_size, model.embed_dim))
        twin.weight_hh_l0.copy_(model.recurrent_weight.reshape(4 * model.hidden_size, model.hidden_size))
        twin.bias_ih_l0.copy_(model.bias.flatten())
        twin.bias_hh_l0.zero_()
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_equals_torch_lstm(dtype: torch.dtype) -> None:
    model = randomised(LSTM(11, 5, 12, dtype=dtype))
    tokens = tokens_for(model, 3, 7)
    h0, c0 = torch.randn(1, 3, 12, dtype=dtype), torch.randn(1, 3, 12, dtype=dtype)
    logits, (h, c) = model(tokens, (h0, c0))
    hidden, (h_twin, c_twin) = torch_twin(model)(F.embedding(tokens, model.embedding), (h0, c0))
    torch.testing.assert_close(logits, F.linear(hidden, model.output_weight, model.output_bias))
    torch.testing.assert_close(h, h_twin)
    torch.testing.assert_close(c, c_twin)
    assert logits.dtype == dtype


@settings(max_examples=30, deadline=None)
@given(
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    batch=st.integers(1, 4),
    time=st.integers(1, 6),
    embed_dim=st.integers(1, 6),
)
def test_equals_flashrnn_vanilla(num_heads: int, head_dim: int, batch: int, time: int, embed_dim: int) -> None:
    flashrnn = pytest.importorskip("flashrnn").flashrnn  # a dependency on Linux only
    model = randomised(LSTM(7, embed_dim, num_heads * head_dim, num_heads))
    tokens = tokens_for(model, batch, time)
    states = (torch.randn(num_heads, batch, head_dim), torch.randn(num_heads, batch, head_dim))
    flashrnn_states = torch.stack(states).transpose(1, 2)[:, :, None]  # as the documentation of States says
    with torch.no_grad():
        wx = torch.einsum("bte,gnde->btgnd", F.embedding(tokens, model.embedding), model.input_weight)
        output, last = flashrnn(
            wx, model.recurrent_weight, model.bias, flashrnn_states, function="lstm", backend="vanilla", dtype="float32"
        )
        expected = F.linear(output[0].reshape(batch, time, -1), model.output_weight, model.output_bias)
        logits, (h, c) = model(tokens, states)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(torch.stack((h, c)).transpose(1, 2)[:, :, None], last)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_states_carried_over_segments_equal_one_run(num_heads: int) -> None:
    model = randomised(LSTM(9, 4, 12, num_heads))
    tokens = tokens_for(model, 2, 10)
    whole, states_whole = model(tokens)
    states, parts = None, []
    for segment in tokens.split([1, 4, 5], dim=1):
        logits, states = model(segment, states)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(states, states_whole)
    assert not torch.allclose(model(tokens[:, 5:])[0], whole[:, 5:])  # the states do matter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_equals_cross_entropy_of_the_logits(dtype: torch.dtype) -> None:
    model = randomised(LSTM(9, 4, 8, 2)).to(dtype)
    tokens, targets = tokens_for(model, 4, 6), tokens_for(model, 4, 6, seed=1)
    targets[0, :3] = -100
    targets[2] = -100
    loss = model.loss(tokens, targets)
    logits, _ = model(tokens)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits.double().flatten(0, 1), targets.flatten()), rtol=1e-5, atol=0
    )
    assert loss.dtype == torch.float64
    assert loss.shape == ()


def test_loss_of_uniform_logits_is_log_vocab() -> None:
    model = LSTM(13, 4, 8)
    with torch.no_grad():
        model.output_weight.zero_()
    assert model.loss(tokens_for(model, 2, 3), tokens_for(model, 2, 3)).item() == pytest.approx(math.log(13))


def test_loss_follows_parameters_changed_in_place() -> None:
    """oneDNN repacks weights; a packed copy must never outlive an in-place perturbation."""
    model = LSTM(9, 4, 16, seed=0)
    tokens, targets = tokens_for(model, 4, 6), tokens_for(model, 4, 6, seed=1)
    with torch.no_grad():
        before = model.loss(tokens, targets)
        for name in ("embedding", "input_weight", "recurrent_weight", "bias", "output_weight", "output_bias"):
            parameter = model.get_parameter(name)
            saved = parameter.clone()
            parameter.view(-1)[0] += 0.5
            changed = model.loss(tokens, targets)
            parameter.copy_(saved)
            assert changed != before, name
            assert model.loss(tokens, targets) == before, name


def test_parameter_shapes_order_and_count() -> None:
    model = LSTM(vocab_size=65, embed_dim=32, hidden_size=128, num_heads=4)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert list(shapes.items()) == [
        ("embedding", (65, 32)),
        ("input_weight", (4, 4, 32, 32)),
        ("recurrent_weight", (4, 4, 32, 32)),
        ("bias", (4, 4, 32)),
        ("output_weight", (65, 128)),
        ("output_bias", (65,)),
    ]
    assert sum(p.numel() for p in model.parameters()) == 65 * 32 + 4 * 128 * 32 + 4 * 128 * 32 + 4 * 128 + 65 * 128 + 65


@pytest.mark.parametrize("num_heads", [1, 2])
def test_gradients_equal_those_of_the_written_out_recurrence(num_heads: int) -> None:
    model = randomised(LSTM(7, 3, 8, num_heads, dtype=torch.float64))
    tokens, targets = tokens_for(model, 2, 5), tokens_for(model, 2, 5, seed=1)
    gradients = torch.autograd.grad(model.loss(tokens, targets), list(model.parameters()))

    wx = torch.einsum("bte,gnde->btgnd", F.embedding(tokens, model.embedding), model.input_weight)
    h = c = torch.zeros(2, num_heads, 8 // num_heads, dtype=torch.float64)
    outputs = []
    for t in range(5):
        recurrent = torch.einsum("gndp,bnp->bgnd", model.recurrent_weight, h)
        i, f, z, o = (wx[:, t] + recurrent + model.bias).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h.flatten(1))
    logits = F.linear(torch.stack(outputs, 1), model.output_weight, model.output_bias)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for got, expected in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, expected)


def test_gradients_flow_to_every_parameter_in_float32() -> None:
    model = LSTM(7, 3, 8, 2, seed=0)
    model.loss(tokens_for(model, 2, 5), tokens_for(model, 2, 5, seed=1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_seed_fixes_the_parameters_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = LSTM(9, 4, 8, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = LSTM(9, 4, 8, seed=5), LSTM(9, 4, 8, seed=6)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    assert not torch.equal(first.embedding, other.embedding)


def test_initialisation_is_as_documented() -> None:
    model = LSTM(400, 16, 64, 4, seed=0)
    assert torch.equal(model.bias[1], torch.ones(4, 16))
    assert model.bias[[0, 2, 3]].abs().max() == 0
    assert model.output_bias.abs().max() == 0
    assert model.embedding.std().item() == pytest.approx(1, rel=0.05)
    for name, fan_in in (("input_weight", 16), ("recurrent_weight", 16), ("output_weight", 64)):
        weight = model.get_parameter(name)
        assert weight.abs().max().item() <= fan_in**-0.5
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((9, 4, 10, 4), "hidden_size 10 is not divisible by num_heads 4"),
        ((0, 4, 8, 1), "vocab_size must be a positive integer, not 0"),
        ((9, -1, 8, 1), "embed_dim must be a positive integer, not -1"),
        ((9, 4, 0, 1), "hidden_size must be a positive integer, not 0"),
        ((9, 4, 8, 0), "num_heads must be a positive integer, not 0"),
        ((9, 4, 8.0, 1), "hidden_size must be a positive integer, not 8.0"),
    ],
)
def test_bad_sizes_are_refused(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(*sizes)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, 9]]), r"tokens must lie in \[0, 9\), but range from 0 to 9"),
        (torch.tensor([[-1, 3]]), r"tokens must lie in \[0, 9\), but range from -1 to 3"),
        (torch.zeros(1, 2), "tokens must be int64 or int32, not torch.float32"),
        (torch.zeros(2, dtype=torch.int64), r"\[B, T\] tensor, not of shape \[2\]"),
        (torch.zeros(2, 0, dtype=torch.int64), r"\[B, T\] tensor, not of shape \[2, 0\]"),
    ],
)
def test_bad_tokens_are_refused(tokens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(9, 4, 8)(tokens)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((1, 2), 9), r"targets must lie in \[0, 9\) or be -100, but range from 9 to 9"),
        (torch.full((1, 2), -1), r"targets must lie in \[0, 9\) or be -100, but range from -1 to -1"),
        (torch.zeros(1, 3, dtype=torch.int64), r"targets must be int64 of the tokens' shape \[1, 2\]"),
        (torch.zeros(1, 2), "targets must be int64"),
    ],
)
def test_bad_targets_are_refused(targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(9, 4, 8).loss(torch.zeros(1, 2, dtype=torch.int64), targets)


def test_states_of_the_wrong_shape_are_refused() -> None:
    model = LSTM(9, 4, 8, 2)
    with pytest.raises(ValueError, match=r"state h must have shape \[N, B, D\] = \[2, 3, 4\], not \[2, 1, 4\]"):
        model(tokens_for(model, 3, 2), model.initial_states(1))


def test_int32_tokens_and_bfloat16_parameters() -> None:
    model = randomised(LSTM(9, 4, 8, 2))
    tokens = tokens_for(model, 2, 5)
    assert torch.equal(model(tokens.int())[0], model(tokens)[0])
    expected = model(tokens)[0]
    torch.testing.assert_close(model.to(torch.bfloat16)(tokens)[0].float(), expected, rtol=0.1, atol=0.1)
