"""FlashLM's population with precision="bfloat16": what is exact in it, and what is left of the precision."""

import pytest
import torch

from tests.models.flashrnn.models import each_flash_cell, make_flash
from tests.models.flashrnn.stand_in import cuda_backend
from tests.recurrent import SMALL, Shape, copies, make_batch, make_seeds, moved
from zo_kernels.errors import GridRangeError

EPS = 2**-5


def on_grid(w: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Rounded to what a bfloat16 as large as |w| + eps resolves, in float64."""
    spacing = torch.exp2(torch.frexp(w.double().abs() + eps).exponent.double() - 8)
    return torch.round(w.double() / spacing) * spacing


@each_flash_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_perturbed_weights_are_exact(cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, targets), seeds = make_flash(cell, dtype=dtype), make_batch(), make_seeds(3)
    if cell == "gru":
        with torch.no_grad():
            model.bias[:, 0].clamp_(-3, 3)
    with cuda_backend(monkeypatch) as kernel:
        model.population_loss(tokens, targets, seeds, EPS, precision="bfloat16")
    ((wx, states, recurrent, bias),) = kernel.calls
    assert {x.dtype for x in (wx, states, recurrent, bias)} == {torch.bfloat16}
    for i, seed in enumerate(seeds.tolist()):
        for s, alpha in enumerate((EPS, -EPS)):
            rounded = make_flash(cell, dtype=torch.float64)
            rounded.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
            with torch.no_grad():
                for name in ("recurrent_weight", "bias"):
                    rounded.get_parameter(name).copy_(on_grid(model.get_parameter(name)))
            member, part = moved(rounded, alpha, seed), slice(2 * (2 * i + s), 2 * (2 * i + s) + 2)
            assert torch.equal(recurrent[part].double(), member.recurrent_weight)
            if cell == "gru":  # the bias of g, the others are part of the projections
                assert torch.equal(bias[part][:, 0].double(), member.bias[:, 0])
                assert not bias[part][:, 1:].any()
            else:
                assert not bias[part].any()
            exact = moved(model.float() if dtype.itemsize < 4 else model, alpha, seed).double()
            projected = torch.einsum("tbe,nide->tbnid", exact.embedding[tokens.t()], exact.input_weight)
            projected += exact.bias[:, exact.bias.shape[1] - projected.shape[3] :]
            torch.testing.assert_close(wx[:, :, part].double(), projected, rtol=2**-8, atol=1e-5)


@each_flash_cell
@pytest.mark.parametrize("backend", ["vanilla", "cuda"])
def test_differences_of_losses_survive(cell: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, eps = Shape(20, 16, 2, 32, 8, 6), 2**-7
    model = make_flash(cell, shape, backend=backend)
    with torch.no_grad():
        for name in ("recurrent_weight", "output_weight", "bias"):
            model.get_parameter(name).clamp_(-1, 1)
    exact = make_flash(cell, shape, torch.float64)
    exact.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    batch, seeds = make_batch(shape), make_seeds(24)
    expected = exact.population_loss(*batch, seeds, eps).diff(dim=1).flatten()
    with cuda_backend(monkeypatch):
        losses = model.population_loss(*batch, seeds, eps, precision="bfloat16")
        float32 = model.population_loss(*batch, seeds, eps)
    assert torch.corrcoef(torch.stack([losses.diff(dim=1).flatten(), expected]))[0, 1] > 0.998
    assert torch.corrcoef(torch.stack([float32.diff(dim=1).flatten(), expected]))[0, 1] > 1 - 1e-8
    assert (losses - float32).abs().max() > 1e-5  # it is another arithmetic


def test_float64_parameters_stay_exact() -> None:
    model, batch, seeds = make_flash("lstm", dtype=torch.float64), make_batch(), make_seeds(2)
    losses = model.population_loss(*batch, seeds, 0.1, precision="bfloat16")
    assert torch.equal(losses, model.population_loss(*batch, seeds, 0.1))


def test_states_are_carried_in_float32() -> None:
    """What bfloat16 made of them, so that a stream may be cut anywhere."""
    shape = SMALL._replace(time=8)
    model, (tokens, targets), seeds = make_flash("lstm", shape), make_batch(shape), make_seeds(3)
    states = model.population_states(3, shape.batch)
    whole = model.population_nats(tokens, targets, seeds, EPS, states=states, precision="bfloat16")
    parts = model.population_states(3, shape.batch)
    nats = sum(
        model.population_nats(tokens[:, part], targets[:, part], seeds, EPS, states=parts, precision="bfloat16")
        for part in (slice(0, 3), slice(3, 8))
    )
    torch.testing.assert_close(nats, whole, rtol=0, atol=1e-4)
    for x, y in zip(states, parts, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, x.bfloat16().float())
        assert torch.equal(x, y)


def test_frozen_weights_are_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, seeds = make_flash("lstm"), make_batch(), make_seeds(2)
    model.recurrent_weight.requires_grad_(False)
    with cuda_backend(monkeypatch) as kernel:
        model.population_loss(*batch, seeds, EPS, precision="bfloat16")
    assert torch.equal(
        kernel.calls[0][2].view(4, 2, 6, 4, 6), model.recurrent_weight.bfloat16().expand(4, -1, -1, -1, -1)
    )


@pytest.mark.parametrize("name", ["recurrent_weight", "output_weight", "bias"])
def test_what_does_not_fit_the_grid_is_refused(name: str) -> None:
    model, batch, seeds = make_flash("gru"), make_batch(), make_seeds(2)
    states = model.population_states(2, SMALL.batch)
    before = copies(states)
    with torch.no_grad():
        model.get_parameter(name).flatten()[0] = 8.0
    message = f"parameter {name} .largest magnitude 8. is too large for bfloat16 at eps 0.03125: use a larger eps or fl"
    with pytest.raises(GridRangeError, match=message):
        model.population_loss(*batch, seeds, EPS, precision="bfloat16", states=states)
    with pytest.raises(ValueError, match=r"with bfloat16 eps must be a power of two, not 0\.1"):
        model.population_loss(*batch, seeds, 0.1, precision="bfloat16", states=states)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))
    model.population_loss(*batch, seeds, EPS)
    model.population_loss(*batch, seeds, 0.0, precision="bfloat16")
    if name == "bias":  # of an LSTM it is added in float32
        other = make_flash("lstm")
        with torch.no_grad():
            other.bias[0, 0, 0] = 8.0
        other.population_loss(*batch, seeds, EPS, precision="bfloat16")
