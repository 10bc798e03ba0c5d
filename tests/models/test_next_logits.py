"""next_logits: forward's last logits and states by the kernel, one token after the other or many at once."""

import pytest
import torch

import zo_kernels as zo
from tests.flat import flat, write_flat
from tests.recurrent import SMALL, TOLERANCE, Shape, copies, each_cell, make_model, tokens_for
from zo_kernels import _C
from zo_kernels.models import RecurrentLM, States


def started(model: RecurrentLM, batch: int) -> States:
    return tuple(torch.rand_like(state) * 2 - 1 for state in model.initial_states(batch))


@each_cell
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_end_of_forward(cell: str, batch: int, dtype: torch.dtype) -> None:
    for shape in (SMALL, Shape(50, 7, 3, 13, 1, 1), Shape(2000, 3, 1, 40, 1, 1), Shape(4, 3, 2, 5, 1, 300)):
        model = make_model(cell, shape._replace(batch=batch), dtype)
        tokens = tokens_for(model, batch, shape.time)
        for states in (None, started(model, batch)):
            with torch.no_grad():
                logits, expected_states = model(tokens, states)
            for isa in _C.supported_isas():
                _C.set_isa(isa)
                actual, actual_states = model.next_logits(tokens, states)
                atol = 1e-12 if dtype == torch.float64 else TOLERANCE
                torch.testing.assert_close(actual, logits[:, -1], rtol=0, atol=atol)
                torch.testing.assert_close(actual_states, expected_states, rtol=0, atol=atol)
                assert not actual.requires_grad


@each_cell
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_token_by_token_equals_all_at_once(cell: str, backend: str) -> None:
    model = make_model(cell)
    tokens = tokens_for(model, 3, 40)
    with zo.backend(backend):
        whole, whole_states = model.next_logits(tokens)
        states = None
        for segment in tokens.split([1, 1, 30, 1, 7], dim=1):
            logits, states = model.next_logits(segment, states)
    torch.testing.assert_close(logits, whole, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(states, whole_states, rtol=0, atol=TOLERANCE)
    assert (model.next_logits(tokens[:, -7:])[0] - whole).abs().max() > 100 * TOLERANCE


@each_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_computed_in_float32(cell: str, dtype: torch.dtype) -> None:
    model = make_model(cell, dtype=dtype)
    tokens, states = tokens_for(model, 3, 5), started(model, 3)
    logits, last = model.next_logits(tokens, states)
    assert {x.dtype for x in (logits, *last)} == {torch.float32}
    with torch.no_grad():
        expected, expected_last = model.float()(tokens, tuple(state.float() for state in states))
    torch.testing.assert_close(logits, expected[:, -1], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(last, expected_last, rtol=0, atol=TOLERANCE)


@each_cell
def test_what_is_given_is_not_written(cell: str) -> None:
    model = make_model(cell)
    tokens, states = tokens_for(model, 3, 5), started(model, 3)
    inputs = [*model.parameters(), tokens, *states]
    before, versions = copies(tuple(x.detach() for x in inputs)), [x._version for x in inputs]
    _, last = model.next_logits(tokens, states)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    assert [x._version for x in inputs] == versions
    assert not any(torch.equal(x, y) for x, y in zip(states, last, strict=True))
    model.next_logits(tokens, last)  # nor what it returned
    assert torch.equal(last[0], model.next_logits(tokens, states)[1][0])


@each_cell
def test_states_of_any_stride_int32_tokens_and_inference_mode(cell: str) -> None:
    model = make_model(cell)
    tokens, states = tokens_for(model, 3, 5), started(model, 3)
    expected, expected_last = model.next_logits(tokens, states)
    strided = tuple(state.transpose(0, 2).contiguous().transpose(0, 2) for state in states)
    with torch.inference_mode():
        actual, last = model.next_logits(tokens.int().t().contiguous().t(), strided)
        again, _ = model.next_logits(tokens[:, :1], last)
    assert torch.equal(actual, expected)
    assert torch.equal(again, model.next_logits(tokens[:, :1], expected_last)[0])


def test_the_optimizers_parameters_are_read_where_they_lie() -> None:
    model = make_model("lstm")
    tokens = tokens_for(model, 3, 5)
    before, _ = model.next_logits(tokens)
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1, mode="shadow")
    assert torch.equal(model.next_logits(tokens)[0], before)
    write_flat(optimizer.space, 0.5 * flat(optimizer.space))
    assert not torch.equal(model.next_logits(tokens)[0], before)


def test_states_of_a_training_forward_come_back_without_history() -> None:
    model = make_model("lstm")
    tokens = tokens_for(model, 3, 5)
    _, states = model(tokens)
    assert states[0].requires_grad
    assert not any(state.requires_grad for state in model.next_logits(tokens, states)[1])
