"""The optimizer with every estimator, distribution, transform and dense rule: exact, restorable, replayable."""

import itertools
import math

import pytest
import torch
from torch import nn

import zo_kernels as zo
from tests.flat import clear_padding, flat, flat_size
from tests.names import name_of
from tests.optim.small import KINDS, built, closure_of
from zo_kernels.estimators import ESTIMATORS
from zo_kernels.models import LSTM
from zo_kernels.optim import ZeroOrder
from zo_kernels.optim.dense import DENSE_RULES
from zo_kernels.transforms import momentum, parse_transforms


@pytest.mark.parametrize("options", KINDS, ids=name_of)
def test_steps_are_replayed_bit_for_bit_and_lower_the_loss(options: dict[str, object]) -> None:
    model, opt = built(**options)
    again, replayed = built(**options)
    loss, rows = closure_of(model), []
    first = float(loss().detach())
    for _ in range(30):
        opt.step(loss)
        rows.append(opt.last.coeffs.clone())
    assert float(loss().detach()) < first
    for number, coeffs in enumerate(rows):
        if number == 17:  # through a checkpoint, too
            state, weights = replayed.state_dict(), {k: v.clone() for k, v in again.state_dict().items()}
            again, replayed = built(**options)
            again.load_state_dict(weights)
            replayed.load_state_dict(state)
        replayed.replay(coeffs)
    assert torch.equal(flat(opt.space), flat(replayed.space))


@pytest.mark.parametrize("options", KINDS, ids=name_of)
def test_whatever_is_raised_theta_is_what_it_was(options: dict[str, object]) -> None:
    model, opt = built(**options)
    loss = closure_of(model)
    opt.step(loss)
    theta, calls = flat(opt.space), itertools.count()

    def failing() -> torch.Tensor:
        if next(calls) == 4:
            raise KeyError("stop")
        return loss()

    with pytest.raises(KeyError):
        opt.step(failing)
    assert torch.equal(flat(opt.space), theta)
    assert opt.steps_taken == 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_population_gives_the_estimate_of_the_closure(name: str) -> None:
    tokens, targets = torch.randint(5, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    models = [LSTM(5, 4, 8, seed=0) for _ in range(2)]
    opts = [
        ZeroOrder(m.parameters(), lr=2**-6, eps=2**-5, probes=4, seed=1, estimator=ESTIMATORS[name]()) for m in models
    ]
    opts[0].step(lambda: models[0].loss(tokens, targets))
    opts[1].step(models[1].population(tokens, targets))
    assert opts[0].last is not None
    assert opts[1].last is not None
    torch.testing.assert_close(opts[0].last.losses, opts[1].last.losses, rtol=1e-5, atol=1e-6)
    tolerance = 2.0 if name == "2-spsa" else 1.0  # its curvature is a difference of differences
    torch.testing.assert_close(opts[0].last.coeffs, opts[1].last.coeffs, rtol=1e-3 * tolerance, atol=1e-4)
    assert opts[1].steps_taken == 1


@pytest.mark.parametrize(("name", "probes_at_once"), [("cd", 1), ("2-spsa", 2)])
def test_the_grid_has_room_for_all_probes_of_a_point(name: str, probes_at_once: int) -> None:
    parameter = nn.Parameter(torch.full((200,), 3.0))
    grid = 2.0**-22  # exact up to 4
    opt = ZeroOrder([parameter], lr=1e-3, eps=0.75, probes=2, grid=grid, estimator=ESTIMATORS[name](), mode="inplace")
    if probes_at_once == 1:
        opt.step(lambda: parameter.square().sum() * 1e-6)
    else:
        with pytest.raises(zo.errors.GridRangeError):
            opt.step(lambda: parameter.square().sum() * 1e-6)


def test_modes_follow_the_distribution() -> None:
    assert built(distribution="sparse-8")[1].mode == "inplace"
    assert built(distribution="normal")[1].mode == "shadow"
    with pytest.raises(ValueError, match="normal probes can't be undone exactly in place: use mode='shadow'"):
        built(distribution="normal", mode="inplace")
    with pytest.raises(ValueError, match=r"distribution must be .* not 'cauchy'"):
        built(distribution="cauchy")


def test_a_population_knows_rademacher_probes_only() -> None:
    model = LSTM(5, 4, 8)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    opt = ZeroOrder(model.parameters(), lr=0.1, probes=2, distribution="sparse-2")
    with pytest.raises(ValueError, match="a population is evaluated at rademacher probes, not at sparse-2 ones"):
        opt.step(model.population(tokens, tokens))


def test_the_window_is_a_sum_of_past_rows() -> None:
    """Two steps with a window are the updates g0 and g1 + 0.5 g0 of the reported estimates."""
    model, opt = built(transforms=[momentum(0.5, 4)], mode="shadow")
    loss, estimates = closure_of(model), []
    theta = flat(opt.space).double()
    for _ in range(2):
        opt.step(loss)
        assert opt.last is not None
        estimates.append(opt.last.gradient.dense(flat_size(opt.space), dtype=torch.float64))
    expected = theta - 2**-6 * (1.5 * estimates[0] + estimates[1])
    clear_padding(opt.space, expected)
    torch.testing.assert_close(flat(opt.space).double(), expected, rtol=0, atol=1e-6)


def test_adam_is_torch_s_on_the_written_gradient() -> None:
    model, opt = built(dense=DENSE_RULES["adam"](), mode="shadow")
    mirror = nn.Parameter(flat(opt.space))
    adam, loss = torch.optim.Adam([mirror], lr=2**-6), closure_of(model)
    for _ in range(5):
        opt.step(loss)
        assert opt.last is not None
        gradient = opt.last.gradient.dense(flat_size(opt.space))
        clear_padding(opt.space, gradient)
        mirror.grad = gradient
        adam.step()
    torch.testing.assert_close(flat(opt.space), mirror.detach(), rtol=0, atol=2e-6)


def test_dense_steps_in_place_stay_on_the_grid_and_in_its_range() -> None:
    parameter = nn.Parameter(torch.full((200,), 3.0))
    opt = ZeroOrder(
        [parameter], lr=2.0, eps=0.5, probes=2, grid=2.0**-22, dense=DENSE_RULES["momentum"](), mode="inplace"
    )
    with pytest.raises(zo.errors.GridRangeError):
        opt.step(lambda: parameter.sum())
    assert torch.equal(parameter.detach(), torch.full((200,), 3.0))
    opt.param_groups[0]["lr"] = 1e-3
    opt.step(lambda: parameter.sum())
    assert torch.equal(parameter.detach(), torch.round(parameter.detach() * 2**22) / 2**22)


def test_micro_batches_that_disagree_are_left_out() -> None:
    """Of three losses with the same, the same and the opposite slope the third is left out."""
    parameter = nn.Parameter(torch.zeros(300))
    opt = ZeroOrder([parameter], lr=0.5, eps=0.25, probes=8, max_cosine_distance=0.5, mode="shadow")
    alone = nn.Parameter(torch.zeros(300))
    other = ZeroOrder([alone], lr=0.5, eps=0.25, probes=8, mode="shadow")
    opt.step([lambda: parameter.sum(), lambda: 3 * parameter.sum(), lambda: -8 * parameter.sum()])
    other.step(lambda: 2 * alone.sum())
    torch.testing.assert_close(parameter, alone)
    assert opt.last is not None
    assert opt.last.losses.shape == (3, 8, 2)


def test_a_probe_that_one_micro_batch_lacks_counts_for_none() -> None:
    parameter = nn.Parameter(torch.zeros(300))
    opt = ZeroOrder([parameter], lr=0.5, eps=0.25, probes=3, max_cosine_distance=2.0, mode="shadow")
    losses = iter([1.0, 0.0, math.nan, 0.0, 4.0, 0.0])
    opt.step([lambda: parameter.sum(), lambda: next(losses)])
    assert opt.last is not None
    assert opt.last.coeffs.isnan().tolist() == [False, True, False]
    pairs = opt.last.losses[0]
    first = (pairs[[0, 2], 0] - pairs[[0, 2], 1]) / 0.5
    second = torch.tensor([1.0, 4.0], dtype=torch.float64) / 0.5
    torch.testing.assert_close(opt.last.gradient.coeffs, ((first + second) / 2 / 2).float().double())


def test_one_closure_or_many() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="a sequence of closures is for optimizers with max_cosine_distance"):
        ZeroOrder([parameter], lr=0.5).step([lambda: 0.0])
    with pytest.raises(ValueError, match="step takes a sequence of closures, one per micro-batch"):
        ZeroOrder([parameter], lr=0.5, max_cosine_distance=1.0).step(lambda: 0.0)
    with pytest.raises(ValueError, match=r"max_cosine_distance must be in \[0, 2\]"):
        ZeroOrder([parameter], lr=0.5, max_cosine_distance=3.0)


def test_replay_refuses_what_are_not_a_step_s_coefficients() -> None:
    _, opt = built()
    with pytest.raises(ValueError, match=r"coeffs must be float32 of shape \(6,\)"):
        opt.replay(torch.zeros(5))
    with pytest.raises(ValueError, match=r"coeffs must be float32"):
        opt.replay(torch.zeros(6, dtype=torch.float64))


def test_a_coefficient_beyond_float32_is_divergence() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    opt = ZeroOrder([parameter], lr=0.5, probes=1)
    losses = iter([1e300, 0.0])
    with pytest.raises(zo.errors.DivergenceError, match="overflows float32"):
        opt.step(lambda: next(losses))


def test_states_of_other_kinds_are_refused() -> None:
    _, plain = built()
    for options in ({"transforms": [parse_transforms("momentum:0.9:2")]}, {"dense": DENSE_RULES["adam"]()}):
        _, other = built(**options)
        with pytest.raises(ValueError, match=r"this state was saved with (other transforms|another dense rule)"):
            other.load_state_dict(plain.state_dict())


def test_groups_with_their_own_eps_have_their_own_slopes() -> None:
    """A loss linear in both groups: its gradient is found whatever each group's eps is."""
    a, b = nn.Parameter(torch.zeros(128)), nn.Parameter(torch.zeros(128))
    groups = [{"params": [a], "eps": 0.25}, {"params": [b], "eps": 1.0}]
    opt = ZeroOrder(groups, lr=1.0, probes=1, mode="shadow")
    opt.step(lambda: a.double().sum())
    assert opt.last is not None
    p = zo.ops.probe(256, int(opt.last.gradient.seeds[0]))
    slope = 0.25 * float(p[:128].sum())
    torch.testing.assert_close(a.detach(), -slope / 0.25 * p[:128])
    torch.testing.assert_close(b.detach(), -slope / 1.0 * p[128:])
