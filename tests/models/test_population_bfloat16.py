"""precision="bfloat16": the arithmetic it is documented to have, what is left of the precision, and what it refuses."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import zo_kernels as zo
from tests.recurrent import (
    DTYPES,
    SMALL,
    TOLERANCE,
    Shape,
    copies,
    each_cell,
    make_batch,
    make_model,
    make_seeds,
    make_states,
    written_out,
)
from zo_kernels import _C
from zo_kernels.models import GRU, RecurrentLM, States

needs_bfloat16 = pytest.mark.skipif(not _C.has_bfloat16(), reason="this processor lacks AVX512_BF16")

EPS = 2**-5


def bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def on_grid(w: Tensor) -> Tensor:
    """Rounded to what a bfloat16 as large as |w| + eps resolves."""
    spacing = torch.exp2(torch.frexp(w.abs() + EPS).exponent.double() - 8)
    return torch.round(w / spacing) * spacing


def emulated(
    model: RecurrentLM, tokens: Tensor, targets: Tensor, seeds: Tensor, states: States
) -> tuple[Tensor, States]:
    """Nats [n, 2] and the states after, as documented, with all else in float64."""
    last, nats = copies(states), torch.zeros(len(seeds), 2, dtype=torch.float64)
    member = copy.deepcopy(model).double()
    for i, seed in enumerate(seeds.tolist()):
        for s, alpha in enumerate((EPS, -EPS)):
            offset = 0
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                p = zo.ops.probe(parameter.numel(), seed, dtype=torch.float64, offset=offset).view(parameter.shape)
                rounded = name.endswith(("recurrent_weight", "output_weight")) or name == "upper_input_weight"
                w = on_grid(parameter.double()) if rounded else parameter.double()
                moved = w + alpha * p
                if rounded:
                    assert torch.equal(bfloat16(moved), moved)  # exact on both sides
                member.get_parameter(name).data.copy_(moved if rounded else moved.float())
                offset += -(-parameter.numel() // 128) * 128
            current = tuple(state[i, s].double() for state in states)
            for t in range(tokens.shape[1]):
                output, current = written_out(member, F.embedding(tokens[:, t], member.embedding), current, bfloat16)
                if not isinstance(model, GRU):
                    current = (bfloat16(current[0]), *current[1:])
                logits = F.linear(output, member.output_weight, member.output_bias)
                nats[i, s] += F.cross_entropy(logits, targets[:, t], reduction="sum").detach()
            for state, x in zip(last, current, strict=True):
                state[i, s] = x.detach()
    return nats, last


@needs_bfloat16
@each_cell
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layers", "most"),
    [
        ({}, 1e-3),
        ({"layers": 2, "head_dim": 5}, 1e-3),
        ({"norm": True}, 1e-3),
        ({"layers": 2, "norm": True, "residual": True}, 2e-3),  # a state that is rounded otherwise moves more of them
    ],
)
def test_the_arithmetic_is_the_documented_one(
    cell: str, batch: int, dtype: torch.dtype, layers: dict[str, int | bool], most: float
) -> None:
    """But where a float32's last bit decides how a state is rounded: most losses and states are those of float64."""
    shape = SMALL._replace(batch=batch, **layers)
    model, (tokens, targets), seeds = make_model(cell, shape, dtype), make_batch(shape, ignored=0), make_seeds(6)
    states = tuple(bfloat16(state) for state in make_states(model, 6, batch))
    expected, expected_states = emulated(model, tokens, targets, seeds, states)
    actual = model.population_nats(tokens, targets, seeds, EPS, states=states, precision="bfloat16")
    scored = targets.numel()
    assert (actual - expected).abs().median() < TOLERANCE * scored
    torch.testing.assert_close(actual, expected, rtol=0, atol=most * scored)
    for state, expected_state in zip(states, expected_states, strict=True):
        assert ((state - expected_state).abs() < TOLERANCE).double().mean() > 0.95
    if cell != "gru":
        assert torch.equal(bfloat16(states[0]), states[0])
    float32 = model.population_nats(tokens, targets, seeds, EPS, states=make_states(model, 6, batch))
    assert (float32 - expected).abs().median() > 5 * TOLERANCE * scored  # it is another arithmetic


@needs_bfloat16
@each_cell
@pytest.mark.parametrize("shape", [Shape(30, 16, 1, 48, 32, 8), Shape(30, 16, 3, 15, 5, 12)], ids=str)
@pytest.mark.slow
def test_differences_still_correlate_with_float64(cell: str, shape: Shape) -> None:
    model = make_model(cell, shape)
    model.reset_parameters(torch.Generator().manual_seed(0))
    exact, (tokens, targets), seeds = make_model(cell, shape, torch.float64), make_batch(shape), make_seeds(64)
    exact.load_state_dict(model.state_dict())
    for eps, bar in ((2**-5, 1e-5), (2**-7, 1e-4)):
        pair = [
            some.population_loss(tokens, targets, seeds, eps, precision="bfloat16").diff(dim=1).flatten()
            for some in (model, exact)
        ]
        assert 1 - float(torch.corrcoef(torch.stack(pair))[0, 1]) < bar


@needs_bfloat16
@each_cell
def test_threads_segments_and_rows_are_as_in_float32(cell: str) -> None:
    shape = Shape(40, 9, 3, 17, 70, 20)
    model, (tokens, targets), seeds = make_model(cell, shape), make_batch(shape), make_seeds(2)
    options = {"precision": "bfloat16"}
    expected = model.population_loss(tokens, targets, seeds, EPS, **options)
    for threads in (1, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(model.population_loss(tokens, targets, seeds, EPS, **options), expected)
    assert torch.equal(model.population_loss(tokens, targets, seeds.flip(0), -EPS, **options), expected.flip(0, 1))
    parts = model.population(tokens, targets, segment_length=7, **options).population_loss(seeds, EPS)
    torch.testing.assert_close(parts, expected, rtol=0, atol=TOLERANCE)


@needs_bfloat16
def test_a_step_takes_it() -> None:
    model, batch = make_model("lstm"), make_batch()
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1, eps=EPS, probes=4)
    with zo.backend("reference"):
        exact = model.population_loss(*batch, torch.from_numpy(zo.philox.probe_seeds(0, 0, 4)), EPS)
    optimizer.step(model.population(*batch, precision="bfloat16"))
    error = (optimizer.last.losses - exact).abs().max()
    assert TOLERANCE < error < 0.01


def test_float64_and_the_reference_stay_exact() -> None:
    (tokens, targets), seeds = make_batch(), make_seeds(2)
    for dtype in (torch.float32, torch.float64):
        model = make_model("lstm", dtype=dtype)
        with zo.backend("reference"):
            exact = model.population_loss(tokens, targets, seeds, EPS)
            assert torch.equal(model.population_loss(tokens, targets, seeds, EPS, precision="bfloat16"), exact)
        if dtype == torch.float64 and _C.has_bfloat16():
            assert torch.equal(model.population_loss(tokens, targets, seeds, EPS, precision="bfloat16"), exact)


def test_a_processor_without_it_is_refused() -> None:
    _C.set_isa("baseline")
    assert not _C.has_bfloat16()
    assert zo.backends.backend_for("cpu").precisions() == ("float32",)
    model, (tokens, targets) = make_model("lstm"), make_batch()
    states = make_states(model, 1, SMALL.batch)
    before = copies(states)
    with pytest.raises(RuntimeError, match="bfloat16 products need a processor with AVX512_BF16: use precision='float"):
        model.population_loss(tokens, targets, make_seeds(1), EPS, states=states, precision="bfloat16")
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("eps", "precision", "error", "message"),
    [
        (EPS, "float16", ValueError, "precision must be one of float32, bfloat16, not 'float16'"),
        (0.1, "bfloat16", ValueError, "with bfloat16 eps must be a power of two, not 0.1"),
        (-0.75, "bfloat16", ValueError, "with bfloat16 eps must be a power of two, not -0.75"),
        (
            2**-8,
            "bfloat16",
            zo.errors.GridRangeError,
            r"parameter output_weight \(largest magnitude 0.998\) is too large for bfloat16 at eps 0.00390625: use a",
        ),
    ],
)
def test_what_it_can_not_be_is_refused(
    backend: str, eps: float, precision: str, error: type[Exception], message: str
) -> None:
    if backend == "cpu" and not _C.has_bfloat16():
        pytest.skip("this processor lacks AVX512_BF16")
    model, (tokens, targets) = make_model("lstm"), make_batch()
    with torch.no_grad():
        for weight in (model.recurrent_weight, model.output_weight):
            weight.clamp_(-0.99, 0.99)
        model.output_weight[0, 0] = 0.998  # with eps above 255/256, the last for which eps = 2^-8 is fine
    states = make_states(model, 1, SMALL.batch)
    before = copies(states)
    with zo.backend(backend):
        with pytest.raises(error, match=message):
            model.population_loss(tokens, targets, make_seeds(1), eps, states=states, precision=precision)
        assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))
        model.output_weight.data[0, 0] = 0.99
        assert model.population_loss(tokens, targets, make_seeds(1), 2**-8, precision="bfloat16").isfinite().all()
