"""What the language models have in common: the loss, the states, the seed."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.recurrent import Shape, each_cell, make_model, randomise, tokens_for
from zo_kernels.models import MODELS


@each_cell
@pytest.mark.parametrize("num_heads", [1, 3])
def test_states_carried_over_segments_equal_one_run(cell: str, num_heads: int) -> None:
    model = make_model(cell, Shape(9, 4, num_heads, 12 // num_heads, 2, 10))
    tokens = tokens_for(model, 2, 10)
    whole, states_whole = model(tokens)
    states, parts = None, []
    for segment in tokens.split([1, 4, 5], dim=1):
        logits, states = model(segment, states)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(states, states_whole)
    assert not torch.allclose(model(tokens[:, 5:])[0], whole[:, 5:])  # the states do matter


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_equals_cross_entropy_of_the_logits(cell: str, dtype: torch.dtype) -> None:
    model = make_model(cell, Shape(9, 4, 2, 4, 4, 6), dtype)
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


@each_cell
def test_loss_of_uniform_logits_is_log_vocab(cell: str) -> None:
    model = MODELS[cell](13, 4, 8)
    with torch.no_grad():
        model.output_weight.zero_()
    assert model.loss(tokens_for(model, 2, 3), tokens_for(model, 2, 3)).item() == pytest.approx(math.log(13))


@each_cell
def test_loss_follows_parameters_changed_in_place(cell: str) -> None:
    """oneDNN repacks weights; a packed copy must never outlive an in-place perturbation."""
    model = MODELS[cell](9, 4, 16, seed=0)
    tokens, targets = tokens_for(model, 4, 6), tokens_for(model, 4, 6, seed=1)
    with torch.no_grad():
        before = model.loss(tokens, targets)
        for name, parameter in model.named_parameters():
            saved = parameter.clone()
            parameter.view(-1)[0] += 0.5
            changed = model.loss(tokens, targets)
            parameter.copy_(saved)
            assert changed != before, name
            assert model.loss(tokens, targets) == before, name


@each_cell
def test_gradients_flow_to_every_parameter_in_float32(cell: str) -> None:
    model = MODELS[cell](7, 3, 8, 2, seed=0)
    model.loss(tokens_for(model, 2, 5), tokens_for(model, 2, 5, seed=1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@each_cell
def test_seed_fixes_the_parameters_and_leaves_the_global_state_alone(cell: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = MODELS[cell](9, 4, 8, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = MODELS[cell](9, 4, 8, seed=5), MODELS[cell](9, 4, 8, seed=6)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    assert not torch.equal(first.embedding, other.embedding)


@each_cell
def test_int32_tokens_and_bfloat16_parameters(cell: str) -> None:
    model = randomise(MODELS[cell](9, 4, 8, 2))
    tokens = tokens_for(model, 2, 5)
    assert torch.equal(model(tokens.int())[0], model(tokens)[0])
    expected = model(tokens)[0]
    torch.testing.assert_close(model.to(torch.bfloat16)(tokens)[0].float(), expected, rtol=0.1, atol=0.1)
