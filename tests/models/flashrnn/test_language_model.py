"""FlashLM against the RecurrentLM of the same parameters, and what is special about it: layout, segments, sLSTM."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from tests.models.flashrnn.models import each_flash_cell, make_flash
from tests.models.flashrnn.stand_in import cuda_backend, next_states
from tests.recurrent import SMALL, TOLERANCE, Shape, each_cell, make_batch, make_model, tokens_for
from zo_kernels.backends.recurrent import memory
from zo_kernels.models import IGNORE_INDEX, MODELS
from zo_kernels.models.flashrnn import plan as plan_module
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.language_model import FlashLM

LONG = SMALL._replace(time=9)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_conversion_loses_nothing(cell: str, dtype: torch.dtype) -> None:
    model = make_model(cell, dtype=dtype)
    model.embedding.requires_grad_(False)
    before = torch.get_rng_state()
    flash = FlashLM.from_recurrent(model)
    back = flash.to_recurrent()
    assert torch.equal(torch.get_rng_state(), before)
    assert type(back) is type(model)
    for (name, x), y in zip(model.named_parameters(), back.parameters(), strict=True):
        assert torch.equal(x, y), name
        assert x.requires_grad == y.requires_grad == flash.get_parameter(name).requires_grad
    again = FlashLM.from_recurrent(back)
    assert all(torch.equal(x, y) for x, y in zip(flash.parameters(), again.parameters(), strict=True))


@each_cell
def test_a_seed_gives_the_same_parameters_but_for_their_order(cell: str) -> None:
    sizes = (7, 5, 12, 3)
    flash = FlashLM(*sizes, cell=cell, seed=3).to_recurrent()
    for x, y in zip(flash.parameters(), MODELS[cell](*sizes, seed=3).parameters(), strict=True):
        assert torch.equal(x, y)


def test_initial_parameters_of_slstm() -> None:
    model = FlashLM(7, 5, 12, 3, cell="slstm", seed=3)
    assert torch.equal(model.bias, torch.tensor([0.0, 1.0, 0.0, 0.0])[None, :, None].expand(3, 4, 4))
    for x, y in zip(model.parameters(), FlashLM(7, 5, 12, 3, cell="lstm", seed=3).parameters(), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(ValueError, match="there is no RecurrentLM with the cell slstm, only lstm, gru, elman"):
        model.to_recurrent()


@each_cell
@pytest.mark.parametrize("shape", [SMALL, SMALL._replace(heads=1), Shape(3, 4, 3, 1, 2, 5)], ids=str)
@pytest.mark.parametrize("backend", ["vanilla", "cuda"])
def test_it_computes_what_recurrent_lm_does(
    cell: str, shape: Shape, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, targets) = make_model(cell, shape), make_batch(shape)
    states = tuple(2 * torch.rand_like(state) - 1 for state in model.initial_states(shape.batch))
    with cuda_backend(monkeypatch):
        flash = FlashLM.from_recurrent(model, backend=backend)
        for before in (None, states):
            expected, expected_states = model(tokens, before)
            actual, last = flash(tokens, before)
            torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
            following, also = flash.next_logits(tokens, before)
            torch.testing.assert_close(following, expected[:, -1], rtol=0, atol=TOLERANCE)
            for x, y, z in zip(last, also, expected_states, strict=True):
                torch.testing.assert_close(x, z, rtol=0, atol=TOLERANCE)
                torch.testing.assert_close(y, z, rtol=0, atol=TOLERANCE)
        assert flash.loss(tokens, targets).dtype == torch.float64
        torch.testing.assert_close(flash.loss(tokens, targets), model.loss(tokens, targets), rtol=0, atol=TOLERANCE)
        assert flash.num_products == model.num_products


def test_slstm_by_its_formulas() -> None:
    model = make_flash("slstm", dtype=torch.float64)
    tokens = tokens_for(model, 3, 4)
    states = [torch.zeros(3, 2, 6, dtype=torch.float64) for _ in range(4)]
    for t in range(4):
        e_BE = F.embedding(tokens[:, t], model.embedding)
        wx = torch.einsum("be,nide->bnid", e_BE, model.input_weight)
        ry = torch.einsum("bnp,nprd->bnrd", states[0], model.recurrent_weight)
        states = next_states("slstm", wx, ry, model.bias, states)
    logits, last = model(tokens)
    expected = F.linear(states[0].flatten(1), model.output_weight, model.output_bias)
    torch.testing.assert_close(logits[:, -1], expected)
    for x, y in zip(last, states, strict=True):
        torch.testing.assert_close(x, y.transpose(0, 1))


@each_flash_cell
def test_states_carry_a_sequence_on(cell: str) -> None:
    model, tokens = make_flash(cell), tokens_for(make_flash(cell), 3, 9)
    whole, last = model(tokens)
    first, states = model(tokens[:, :4])
    assert len(states) == len(model.initial_states(3)) == CELLS[cell].states
    rest, carried = model(tokens[:, 4:], states)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=TOLERANCE)
    for x, y in zip(carried, last, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE)


@each_flash_cell
def test_long_contexts_are_walked_in_segments(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, targets) = make_flash(cell, LONG), make_batch(LONG)
    whole, last = model(tokens)
    loss, (following, _) = model.loss(tokens, targets), model.next_logits(tokens)
    work = plan_module.Work.of(model._weights({}), LONG.batch, LONG.time, torch.float32)
    monkeypatch.setattr(memory, "CPU_BYTES", work.probe_bytes + 4 * work.step_bytes)
    monkeypatch.setattr(plan_module, "_STEPS", 4)
    with cuda_backend(monkeypatch) as kernel:
        model = copy.deepcopy(model)
        logits, states = model(tokens)
        assert [len(wx) for wx, *_ in kernel.calls] == [4, 4, 1]
        torch.testing.assert_close(logits, whole, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(model.loss(tokens, targets), loss, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(model.next_logits(tokens)[0], following, rtol=0, atol=TOLERANCE)
    for x, y in zip(states, last, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE)


@each_flash_cell
def test_parameters_reach_the_kernel_as_they_are_stored(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_flash(cell), tokens_for(make_flash(cell), 3, 4)
    with cuda_backend(monkeypatch) as kernel, torch.no_grad():
        model(tokens)
    ((wx, _, recurrent, bias),) = kernel.calls
    assert recurrent.data_ptr() == model.recurrent_weight.data_ptr()
    assert bias.data_ptr() == model.bias.data_ptr()
    assert wx.shape == (4, 3, 2, CELLS[cell].input_rows, 6)
    assert kernel.training == [False]


def test_both_ways_to_the_projections_agree() -> None:
    """8 positions have their tokens projected, 12 the vocabulary of 11."""
    model = make_flash("lstm")
    tokens = tokens_for(model, 3, 4)
    torch.testing.assert_close(model(tokens[:2])[0], model(tokens)[0][:2], rtol=0, atol=TOLERANCE)


@each_cell
@pytest.mark.parametrize("shape", [SMALL, SMALL._replace(layers=3, norm=True, residual=True)], ids=str)
def test_gradients_are_recurrent_lms(cell: str, shape: Shape) -> None:
    model, (tokens, targets) = make_model(cell, shape, torch.float64), make_batch(shape)
    flash = FlashLM.from_recurrent(model)
    model.loss(tokens, targets).backward()
    flash.loss(tokens, targets).backward()
    gradient = copy.deepcopy(flash)
    with torch.no_grad():
        for name, parameter in flash.named_parameters():
            gradient.get_parameter(name).copy_(parameter.grad)
    for (name, x), y in zip(model.named_parameters(), gradient.to_recurrent().parameters(), strict=True):
        torch.testing.assert_close(y, x.grad, msg=name)


@each_flash_cell
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.2), (torch.float16, 0.02)])
def test_16_bit_parameters(cell: str, dtype: torch.dtype, rounding: float) -> None:
    model, (tokens, targets) = make_flash(cell, dtype=dtype), make_batch()
    wide = copy.deepcopy(model).float()
    logits, states = model(tokens)
    assert logits.dtype == states[0].dtype == dtype
    torch.testing.assert_close(logits.float(), wide(tokens)[0], rtol=0, atol=rounding)
    torch.testing.assert_close(model.loss(tokens, targets), wide.loss(tokens, targets), rtol=0, atol=rounding / 10)
    following, carried = model.next_logits(tokens)
    assert following.dtype == carried[0].dtype == torch.float32
    torch.testing.assert_close(model.next_logits(tokens, carried)[0], model.next_logits(tokens, states)[0])


def test_copies_are_independent_and_complete() -> None:
    model, (tokens, targets) = make_flash("gru", backend="vanilla"), make_batch()
    loss = model.loss(tokens, targets)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.loss(tokens, targets), loss)
        assert copied._engine is not model._engine
        with torch.no_grad():
            copied.output_bias.add_(torch.arange(11.0))
        assert not torch.equal(copied.loss(tokens, targets), loss)
    assert torch.equal(model.loss(tokens, targets), loss)
    other = FlashLM(11, 5, 12, 2, cell="gru")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.loss(tokens, targets), loss)
    assert repr(model) == (
        "FlashLM(vocab_size=11, embed_dim=5, hidden_size=12, num_heads=2, num_layers=1, layer_norm=False, "
        "residual=False, cell='gru', backend='vanilla')"
    )


def test_int32_tokens_and_a_batch_without_a_score() -> None:
    model, (tokens, targets) = make_flash("elman"), make_batch()
    assert torch.equal(model(tokens.int())[0], model(tokens)[0])
    assert model.loss(tokens, torch.full_like(targets, IGNORE_INDEX)).isnan()
