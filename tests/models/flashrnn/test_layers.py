"""FlashLM with several layers, layer norm and residual connections, and batches that flashrnn does not take at once."""

import copy

import pytest
import torch

from tests.models.flashrnn.models import each_flash_cell, make_flash
from tests.models.flashrnn.stand_in import cuda_backend, next_states
from tests.models.flashrnn.test_population import EPS, allow, one_by_one
from tests.recurrent import (
    TOLERANCE,
    Shape,
    copies,
    each_cell,
    make_batch,
    make_model,
    make_seeds,
    make_states,
    tokens_for,
)
from zo_kernels.models import MODELS
from zo_kernels.models.flashrnn import call
from zo_kernels.models.flashrnn import plan as plan_module
from zo_kernels.models.flashrnn.language_model import FlashLM

SHAPES = (
    Shape(11, 5, 2, 8, 3, 6, layers=2),
    Shape(11, 5, 2, 8, 3, 6, layers=3, norm=True, residual=True),
    Shape(11, 5, 1, 9, 3, 6, norm=True),
)
DEEP = SHAPES[1]
ALLOWED = 4 * TOLERANCE
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def assert_close(actual, expected, allowed=ALLOWED) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=allowed)


@each_cell
@each_shape
@pytest.mark.parametrize("backend", ["vanilla", "cuda"])
def test_it_computes_what_recurrent_lm_does(cell: str, shape: Shape, backend: str, monkeypatch) -> None:
    model, (tokens, targets) = make_model(cell, shape), make_batch(shape)
    states = tuple(2 * torch.rand_like(state) - 1 for state in model.initial_states(shape.batch))
    with cuda_backend(monkeypatch):
        flash = FlashLM.from_recurrent(model, backend=backend)
        for before in (None, states):
            expected, expected_states = model(tokens, before)
            actual, last = flash(tokens, before)
            following, also = flash.next_logits(tokens, before)
            assert_close(actual, expected)
            assert_close(following, expected[:, -1])
            for x, y, z in zip(last, also, expected_states, strict=True):
                assert_close(x, z)
                assert_close(y, z)
        assert_close(flash.loss(tokens, targets), model.loss(tokens, targets))
    assert flash.num_products == model.num_products
    back = flash.to_recurrent()
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), back.parameters(), strict=True))
    assert (back.num_layers, back.layer_norm, back.residual) == (shape.layers, shape.norm, shape.residual)


@each_cell
def test_a_seed_gives_the_same_parameters_but_for_their_order(cell: str) -> None:
    options = {"num_layers": 3, "layer_norm": True, "residual": True, "seed": 3}
    flash = FlashLM(7, 5, 12, 3, cell=cell, **options).to_recurrent()
    for x, y in zip(flash.parameters(), MODELS[cell](7, 5, 12, 3, **options).parameters(), strict=True):
        assert torch.equal(x, y)


def test_slstm_by_its_formulas() -> None:
    """The second layer reads the hidden states of the first, with residual connections and layer norm."""
    shape = Shape(11, 5, 2, 4, 3, 4, layers=2, norm=True, residual=True)
    model = make_flash("slstm", shape, torch.float64)
    tokens = tokens_for(model, 3, 4)
    states = [[torch.zeros(3, 2, 4, dtype=torch.float64) for _ in range(4)] for _ in range(2)]
    for t in range(4):
        x = model.embedding[tokens[:, t]]
        for layer in range(2):
            weights = model.input_weight, model.recurrent_weight, model.bias
            if layer == 1:
                weights = tuple(
                    w[0] for w in (model.upper_input_weight, model.upper_recurrent_weight, model.upper_bias)
                )
            wx = torch.einsum("bk,nidk->bnid", x, weights[0])
            ry = torch.einsum("bnp,nprd->bnrd", states[layer][0], weights[1])
            states[layer] = next_states("slstm", wx, ry, weights[2], states[layer])
            h, below = states[layer][0].flatten(1), x
            centered = h - h.mean(1, keepdim=True)
            x = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
            x = x * model.norm_weight[layer] + model.norm_bias[layer] + (below if layer else 0)
    logits, last = model(tokens)
    torch.testing.assert_close(logits[:, -1], x @ model.output_weight.t() + model.output_bias)
    for name, state in enumerate(last):
        torch.testing.assert_close(state, torch.cat([layer[name] for layer in states], 1).transpose(0, 1))


@each_flash_cell
@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_losses_are_those_of_the_perturbed_models(cell: str, shape: Shape, dtype: torch.dtype) -> None:
    model, (tokens, targets), seeds = make_flash(cell, shape, dtype), make_batch(shape), make_seeds(3)
    losses = model.population_loss(tokens, targets, seeds, EPS)
    allowed = 1e-11 if dtype == torch.float64 else ALLOWED
    assert_close(losses, one_by_one(model, tokens, targets, seeds), allowed)
    assert losses.std() > 0.01


@each_flash_cell
@pytest.mark.parametrize(("probes", "steps"), [(1, 1), (2, 4), (7, 6)])
def test_chunks_segments_and_states(cell: str, probes: int, steps: int, monkeypatch) -> None:
    model, (tokens, targets), seeds = make_flash(cell, DEEP), make_batch(DEEP), make_seeds(5)
    before = make_states(model, 5, DEEP.batch)
    if cell == "slstm":
        before = tuple(state + 2 * (i == 2) for i, state in enumerate(before))
    whole_states, states = copies(before), copies(before)
    whole = model.population_loss(tokens, targets, seeds, EPS, states=whole_states)
    allow(monkeypatch, probes, steps)
    with cuda_backend(monkeypatch):
        actual = copy.deepcopy(model).population_loss(tokens, targets, seeds, EPS, states=states)
    assert_close(actual, whole)
    for state, expected in zip(states, whole_states, strict=True):
        assert_close(state, expected)


@each_flash_cell
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_differences_of_losses_survive_bfloat16(cell: str, shape: Shape) -> None:
    shape, eps = shape._replace(vocab=20, embed=16, head_dim=16, batch=8), 2**-6
    model = make_flash(cell, shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-1, 1)
    exact = make_flash(cell, shape, torch.float64)
    exact.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    batch, seeds = make_batch(shape), make_seeds(24)
    expected = exact.population_loss(*batch, seeds, eps).diff(dim=1).flatten()
    losses = model.population_loss(*batch, seeds, eps, precision="bfloat16")
    assert torch.corrcoef(torch.stack([losses.diff(dim=1).flatten(), expected]))[0, 1] > 0.995
    assert (losses - model.population_loss(*batch, seeds, eps)).abs().max() > 1e-5


@each_flash_cell
def test_a_batch_in_parts(cell: str, monkeypatch) -> None:
    """Two members of two heads of eight units: three of five sequences fit at a time, and of the model itself all."""
    shape = DEEP._replace(batch=5)
    model, (tokens, targets), seeds = make_flash(cell, shape), make_batch(shape), make_seeds(3)
    before = make_states(model, 3, shape.batch)
    if cell == "slstm":
        before = tuple(state + 2 * (i == 2) for i, state in enumerate(before))
    whole_states, states = copies(before), copies(before)
    whole = model.population_nats(tokens, targets, seeds, EPS, states=whole_states)
    forward, last = model(tokens)
    following, loss = model.next_logits(tokens), model.loss(tokens, targets)
    for rows, heads in ((3, 2 * shape.heads), (2, shape.heads)):
        most = call.elements(cell, 1, rows, heads, shape.head_dim)
        for module in (call, plan_module):
            monkeypatch.setattr(module, "MAX_ELEMENTS", most)
        model = copy.deepcopy(model)
        if rows == 3:
            with cuda_backend(monkeypatch) as kernel:
                nats = model.population_nats(tokens, targets, seeds, EPS, states=states)
            assert {wx.shape[1] for wx, *_ in kernel.calls} == {3, 2}
            assert_close(nats, whole, 30 * ALLOWED)
            for state, expected in zip(states, whole_states, strict=True):
                assert_close(state, expected)
            continue
        logits, states_after = model(tokens)
        assert_close(logits, forward)
        assert_close(model.loss(tokens, targets), loss)
        assert_close(model.next_logits(tokens)[0], following[0])
        for state, other, expected in zip(states_after, model.next_logits(tokens)[1], last, strict=True):
            assert_close(state, expected)
            assert_close(other, expected)
