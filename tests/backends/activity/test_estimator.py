"""Activity perturbation: batched torch against the reference, and the reference against exact gradients."""

import pytest
import torch
from torch import Tensor

from tests.recurrent import SMALL, Shape, each_cell, make_batch, make_model, make_seeds, make_states
from zo_kernels.backends.activity import batched, reference, signs
from zo_kernels.backends.activity.problem import ActivityGradient, ActivityProblem
from zo_kernels.models import RecurrentLM

SHAPES = (
    SMALL,
    Shape(vocab=2, embed=1, heads=1, head_dim=1, batch=1, time=1),
    Shape(vocab=5, embed=3, heads=3, head_dim=15, batch=4, time=7),
)
FEW = Shape(vocab=4, embed=3, heads=2, head_dim=2, batch=2, time=4)

each_local = pytest.mark.parametrize("local", [False, True], ids=["estimated", "local"])


def problem_of(
    model: RecurrentLM,
    batch: tuple[Tensor, Tensor],
    *,
    probes: int = 3,
    seed: int = 0,
    sigma: float = 1e-3,
    credit: int = 99,
    local: bool = False,
    states: tuple[Tensor, ...] = (),
    first: int = 0,
) -> ActivityProblem:
    seeds = make_seeds(probes, seed).numpy()
    return ActivityProblem(model._weights(), *batch, states, seeds, sigma, credit, local, first)


def flat(found: ActivityGradient) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in found.gradients])


def exact(model: RecurrentLM, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of the sum of nats, by autograd."""
    nats = model.segment_nats(*batch)[0]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(nats, list(model.parameters()))])


@each_cell
@each_local
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "twice"])
def test_batched_is_the_reference(cell, shape, local, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(batched, "_KEPT_BYTES", 0)
        monkeypatch.setattr(signs, "_WORDS_AT_ONCE", 1)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-2), (torch.bfloat16, 2e-2)):
        model, batch = make_model(cell, shape, dtype), make_batch(shape)
        states = tuple(state[0, 0] for state in make_states(model, 1, shape.batch))
        for credit, start in ((1, ()), (3, states), (99, ())):
            sigma = 1e-3 if dtype == torch.float64 else 2**-7
            problem = problem_of(model, batch, sigma=sigma, credit=credit, local=local, states=start, first=2**31 + 5)
            actual, expected = batched.activity(problem), reference.activity(problem)
            scale = float(flat(expected).abs().max())
            assert (flat(actual) - flat(expected)).abs().max() <= tolerance * scale
            assert (actual.nats - expected.nats).abs().max() <= tolerance
            assert abs(actual.clean - expected.clean) <= tolerance
            assert [g.dtype for g in actual.gradients] == [problem.dtype] * 6


@each_cell
@each_local
def test_unbiased_up_to_the_square_of_sigma(cell, local):
    """The mean over n probes is within what n allows, and the bias at a large sigma falls with its square."""
    model, batch = make_model(cell, FEW, torch.float64), make_batch(FEW)
    gradient = exact(model, batch)
    estimate = flat(batched.activity(problem_of(model, batch, probes=20_000, local=local)))
    error = float((estimate - gradient).norm() / gradient.norm())
    assert error < 0.1
    # The same probes at two sigmas: what differs is the bias.
    moved = [flat(batched.activity(problem_of(model, batch, probes=2_000, sigma=s, local=local))) for s in (0.1, 0.2)]
    still = flat(batched.activity(problem_of(model, batch, probes=2_000, sigma=1e-4, local=local)))
    assert 3.5 < float((moved[1] - still).norm() / (moved[0] - still).norm()) < 4.5


@each_cell
def test_the_local_gradient_of_a_single_step_is_exact(cell):
    shape = FEW._replace(time=1)
    model, batch = make_model(cell, shape, torch.float64), make_batch(shape, ignored=0.0)
    problem = problem_of(model, batch, local=True)
    assert (flat(batched.activity(problem)) - exact(model, batch)).abs().max() < 1e-12
    # Nothing of it is estimated, so nothing of it is noise.
    assert (flat(batched.activity(problem._replace(credit_length=1))) - exact(model, batch)).abs().max() < 1e-12


def jacobians(model: RecurrentLM, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of the losses from step t on with respect to all pre-activations: [t, T, P, B]."""
    (tokens, targets), weights = batch, model._weights()
    shape, steps = weights.bias.shape, tokens.shape[1]
    moved = torch.zeros(steps, *shape, len(tokens), dtype=torch.float64, requires_grad=True)
    problem, losses = problem_of(model, batch), []
    states = problem.start(torch.float64)
    for t in range(steps):
        states = reference.cell_of(weights.cell, reference.rows_of(weights, tokens[:, t], states[0]) + moved[t], states)
        losses.append(reference.nats_of(weights, states[0], targets[:, t]).sum())
    each = torch.stack([torch.autograd.grad(loss, moved, retain_graph=True)[0] for loss in losses])
    return each.flatten(2, 4).flip(0).cumsum(0).flip(0)


@each_cell
def test_the_error_of_an_estimate_follows_the_formula(cell):
    """The mean square error of the bias, the sum over sequences and steps of delta: see docs/activity.md."""
    model, batch = make_model(cell, FEW, torch.float64), make_batch(FEW)
    g_tTPB = jacobians(model, batch)
    own_TPB = torch.einsum("ttpb->tpb", g_tTPB)
    of_others = g_tTPB.shape[2] * g_tTPB.square().sum() - own_TPB.square().sum()
    crossed = torch.einsum("tspb,stpb->", g_tTPB, g_tTPB) - own_TPB.square().sum()
    expected = float(of_others + crossed)
    mean, squares, probes = own_TPB.sum((0, 2)), [], 300
    for seed in range(probes):
        estimate = batched.activity(problem_of(model, batch, probes=1, seed=seed)).gradients[3].flatten()
        squares.append(float((estimate - mean).square().sum()))
    assert sum(squares) / probes == pytest.approx(expected, rel=0.25)


@each_cell
def test_losses_before_a_step_and_beyond_the_credit_length_do_not_count(cell):
    model, (tokens, targets) = make_model(cell, FEW, torch.float64), make_batch(FEW, ignored=0.0)
    for scored, credit in ((0, 99), (3, 2)):  # a loss at the first step; one at the last, two losses ahead
        alone = torch.full_like(targets, -100)
        alone[:, scored] = targets[:, scored]
        problem = problem_of(model, (tokens, alone), credit=credit)
        inside = range(max(0, scored - credit + 1), scored + 1)
        tokens_inside = tokens[:, inside.start : inside.stop].unique()
        embedding = batched.activity(problem).gradients[0]
        others = [token for token in range(FEW.vocab) if token not in tokens_inside]
        assert embedding[others].abs().max() == 0 if others else True
        assert embedding[tokens_inside].abs().min() > 0


def test_signs_are_those_of_the_reference(monkeypatch):
    model, batch = make_model("gru", SHAPES[2]), make_batch(SHAPES[2])
    for at_once in (1, 1 << 18):
        monkeypatch.setattr(signs, "_WORDS_AT_ONCE", at_once)
        problem = problem_of(model, batch, first=2**32 - 4)
        found = signs.StepSigns(problem)
        for i, seed in enumerate(problem.seeds.tolist()):
            expected = reference.signs(problem, seed)
            for t in (3, 0, 6):  # in any order
                assert torch.equal(found.at(t)[i].double(), expected[t].flatten(0, 2).t())


def test_sequences_keep_their_signs_in_any_batch():
    model, (tokens, targets) = make_model("lstm", SMALL, torch.float64), make_batch()
    whole = flat(batched.activity(problem_of(model, (tokens, targets), first=7)))
    parts = [
        flat(batched.activity(problem_of(model, (tokens[part], targets[part]), first=7 + part.start)))
        for part in (slice(0, 1), slice(1, 3))
    ]
    assert (whole - sum(parts)).abs().max() < 1e-10  # rounding of losses, divided by 2 sigma
