"""population_loss and population_nats: every instruction set's kernel against float64, and against torch's layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
    moved,
    tolerance_of,
)
from zo_kernels import _C
from zo_kernels.models import IGNORE_INDEX, RecurrentLM, States


def exact(model: RecurrentLM, tokens: Tensor, targets: Tensor, seeds: Tensor, eps: float, states: States) -> Tensor:
    """By the reference backend, in float64; the states are written."""
    with zo.backend("reference"):
        return model.population_nats(tokens, targets, seeds, eps, states=states)


def assert_parity(
    model: RecurrentLM, tokens: Tensor, targets: Tensor, seeds: Tensor, eps: float, states: States = ()
) -> None:
    """Each instruction set's nats and states are those of float64, up to the rounding of float32."""
    expected_states = copies(states)
    expected = exact(model, tokens, targets, seeds, eps, expected_states)
    scored, tolerance = int((targets != IGNORE_INDEX).sum()), tolerance_of(model)
    with zo.backend("cpu"):
        for isa in _C.supported_isas():
            _C.set_isa(isa)
            actual_states = copies(states)
            actual = model.population_nats(tokens, targets, seeds, eps, states=actual_states)
            what = lambda text: f"{isa}: {text}"  # noqa: B023, E731
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scored, msg=what)
            torch.testing.assert_close(actual_states, expected_states, rtol=0, atol=tolerance, msg=what)


def scattered(x: Tensor) -> Tensor:
    """The same elements, every second of a larger tensor and with time before batch."""
    apart = x.new_full((2 * x.shape[1], x.shape[0]), 10**6)[::2]
    return apart.copy_(x.t()).t()


@settings(max_examples=150)
@given(
    cell=st.sampled_from(["lstm", "gru", "elman"]),
    shape=st.builds(
        Shape,
        vocab=st.integers(1, 70),
        embed=st.integers(1, 40),
        heads=st.integers(1, 5),
        head_dim=st.integers(1, 40),
        batch=st.integers(1, 40),
        time=st.integers(1, 6),
        layers=st.sampled_from([1, 1, 2, 3]),
        norm=st.booleans(),
        residual=st.just(False),
    ),
    residual=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from([0.0, 2**-10, -(2**-6), 0.1]),
    probes=st.integers(1, 3),
    with_states=st.booleans(),
    int32=st.booleans(),
    strided=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_kernel_equals_the_reference(
    cell: str,
    shape: Shape,
    residual: bool,
    dtype: torch.dtype,
    eps: float,
    probes: int,
    with_states: bool,
    int32: bool,
    strided: bool,
    ignored: float,
    seed: int,
) -> None:
    norm = shape.norm and shape.heads * shape.head_dim >= 8
    shape = shape._replace(norm=norm, residual=residual and shape.layers > 1)
    model = make_model(cell, shape, dtype, seed)
    tokens, targets = make_batch(shape, seed, ignored)
    states = make_states(model, probes, shape.batch, seed) if with_states else ()
    if int32:
        tokens = tokens.int()
    if strided:
        tokens, targets = scattered(tokens), scattered(targets)
    assert_parity(model, tokens, targets, make_seeds(probes, seed), eps, states)


@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        ("lstm", Shape(20, 8, 2, 12, 40, 60)),  # several chunks of time steps, many sequences
        ("gru", Shape(20, 8, 2, 12, 1, 600)),  # and few
        ("elman", Shape(20, 8, 2, 12, 3, 200)),
        ("gru", Shape(20, 8, 2, 12, 1100, 3)),  # more sequences than a chunk has positions
        ("lstm", Shape(7, 3, 1, 521, 2, 2)),  # the recurrence in panels
        ("gru", Shape(7, 3, 1, 600, 17, 2)),
        ("elman", Shape(1500, 5, 3, 21, 5, 3)),  # the output projection in panels
        ("lstm", Shape(1500, 5, 3, 21, 33, 2)),
        ("gru", Shape(30, 700, 2, 20, 4, 3)),  # the input projection in blocks
        ("elman", Shape(300, 1, 512, 32, 16, 70)),  # more distinct tokens than their table holds
        ("lstm", Shape(20, 8, 3, 30, 40, 60, layers=2)),  # the layers' tables over several chunks
        ("gru", Shape(20, 8, 3, 30, 1, 600, layers=3, norm=True)),
        ("elman", Shape(20, 8, 2, 601, 17, 3, layers=2, residual=True)),  # their input projections in blocks
        ("lstm", Shape(20, 8, 1, 521, 2, 3, layers=2, norm=True, residual=True)),
    ],
    ids=str,
)
def test_shapes_beyond_one_panel(cell: str, shape: Shape) -> None:
    model = make_model(cell, shape)
    tokens, targets = make_batch(shape)
    if shape.heads > 100:
        targets[:, :-1] = IGNORE_INDEX  # to spare the reference its output projections
    assert_parity(model, tokens, targets, make_seeds(1), 2**-7, make_states(model, 1, shape.batch))


@each_cell
@pytest.mark.parametrize("batch", [2, 19])
@pytest.mark.parametrize("layers", [{}, {"layers": 2}, {"layers": 3, "norm": True, "residual": True}])
def test_equals_the_loss_of_a_moved_model(cell: str, batch: int, layers: dict[str, int | bool]) -> None:
    """An independent path to the same number: the probe applied by the ops, the forward by torch's layers."""
    shape = SMALL._replace(batch=batch, **layers)
    tokens, targets = make_batch(shape)
    seeds, eps = make_seeds(3), 0.1
    for dtype in (*DTYPES, torch.float64):
        model = make_model(cell, shape, dtype)
        losses = model.population_loss(tokens, targets, seeds, eps)
        assert (losses.shape, losses.dtype, losses.requires_grad) == ((3, 2), torch.float64, False)
        one_by_one = [
            [moved(model, alpha, seed).loss(tokens, targets) for alpha in (eps, -eps)] for seed in seeds.tolist()
        ]
        expected = torch.stack([torch.stack(pair) for pair in one_by_one]).detach()
        tolerance = (1e-13 if shape.layers == 1 else 1e-12) if dtype == torch.float64 else tolerance_of(model)
        torch.testing.assert_close(losses, expected, rtol=0, atol=tolerance)
        assert (losses[:, 0] - losses[:, 1]).abs().max() > 1000 * TOLERANCE


@each_cell
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "layers", "share"), [(1, {}, 0.98), (20, {}, 0.98), (20, {"layers": 2, "norm": True}, 0.95)]
)
def test_one_wrong_sign_would_show(
    cell: str, dtype: torch.dtype, batch: int, layers: dict[str, int | bool], share: float
) -> None:
    """The tolerance is worth something: were the probe's sign at one element wrong, the nats would leave it."""
    shape = Shape(7, 5, 2, 6, batch, 5, **layers)
    model, (tokens, targets), seed, eps = make_model(cell, shape, dtype), make_batch(shape, ignored=0), 3, 0.25
    actual = model.population_nats(tokens, targets, torch.tensor([seed]), eps)[0, 0]
    base = moved(model, eps, seed).double()
    read = {tuple(row) for row in tokens.flatten()[:, None].tolist()}
    shows = total = 0
    offset = 0
    for name, parameter in base.named_parameters():
        wrong_step = -2 * eps * zo.ops.probe(parameter.numel(), seed, dtype=torch.float64, offset=offset)
        offset += -(-parameter.numel() // 128) * 128
        for j in range(0, parameter.numel(), 3):
            if name == "embedding" and (j // shape.embed,) not in read:
                continue  # of a token that does not occur
            with torch.no_grad():
                kept = parameter.view(-1)[j].clone()
                parameter.view(-1)[j] += wrong_step[j]
                wrong = base.loss(tokens, targets) * targets.numel()
                parameter.view(-1)[j] = kept
            total += 1
            shows += abs(float(wrong - actual)) > TOLERANCE * targets.numel()
    assert total > 50
    assert shows >= share * total


@each_cell
@pytest.mark.parametrize(("layers", "times"), [(1, 100), (2, 10)])
def test_swapped_rows_would_show(cell: str, layers: int, times: int) -> None:
    """Every gate counts: with any two of a weight's rows exchanged the reference is far from the kernel."""
    shape = SMALL._replace(layers=layers)
    model, (tokens, targets), seeds = make_model(cell, shape), make_batch(), make_seeds(2)
    actual = model.population_loss(tokens, targets, seeds, 2**-6)
    weights = [model.input_weight, model.recurrent_weight, model.bias]
    if layers == 2:
        weights += [model.upper_input_weight[0], model.upper_recurrent_weight[0], model.upper_bias[0]]
    swaps = [(w, a, b) for w in weights for a in range(len(w)) for b in range(a)]
    swaps += [(w.transpose(0, 1), 0, 1) for w in weights]  # and its heads
    for weight, a, b in swaps:
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[a], weight[b] = kept[b], kept[a]
            with zo.backend("reference"):
                swapped = model.population_loss(tokens, targets, seeds, 2**-6)
            weight.copy_(kept)
        assert (actual - swapped).abs().max() > times * TOLERANCE


@each_cell
@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("layers", [{}, {"layers": 2, "norm": True, "residual": True}])
def test_a_loss_is_not_finite_where_the_reference_is_not(cell: str, batch: int, layers: dict[str, int | bool]) -> None:
    """A NaN anywhere must come out, or a diverged step would pass for a good one."""
    shape = SMALL._replace(batch=batch, vocab=5, **layers)
    bad = [float("nan"), float("inf"), float("-inf")]
    if not layers:  # whose outputs are below 1: float32 overflows where float64 does
        bad.append(3e38)
    model, (tokens, targets), seeds = make_model(cell, shape), make_batch(shape, ignored=0), make_seeds(1)
    tokens[0, 0], targets[0, 0] = 0, 0
    for name, parameter in model.named_parameters():
        kept, outcomes = parameter.detach().clone(), set()
        for value in bad:
            for j in (0, parameter.numel() - 1) if name != "embedding" else (0,):
                with torch.no_grad():
                    parameter.view(-1)[j] = value
                    with zo.backend("reference"):
                        expected = model.population_loss(tokens, targets, seeds, 0.1)
                    for isa in _C.supported_isas():
                        _C.set_isa(isa)
                        actual = model.population_loss(tokens, targets, seeds, 0.1)
                        assert torch.equal(actual.isfinite(), expected.isfinite()), (name, value, j, isa)
                    parameter.copy_(kept)
                outcomes |= set(expected.isfinite().flatten().tolist())
        assert False in outcomes, name
