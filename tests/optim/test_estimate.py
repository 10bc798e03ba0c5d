"""A step as an estimate that is applied, and steps with lr 0."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from tests.flat import flat
from tests.names import name_of
from tests.optim.small import KINDS, built, closure_of
from zo_kernels.optim import ZeroOrder


@pytest.mark.parametrize("options", KINDS, ids=name_of)
def test_a_step_is_an_estimate_that_is_applied(options: dict[str, object]) -> None:
    (model, opt), (other, apart) = built(**options), built(**options)
    for _ in range(3):
        loss = opt.step(closure_of(model))
        theta = flat(apart.space)
        estimate = apart.estimate(closure_of(other))
        if apart.steps_taken:  # the first step rounds them to the grid
            assert torch.equal(flat(apart.space), theta)
        assert apart.steps_taken == opt.steps_taken - 1
        apart.apply(estimate)
        assert apart.last is estimate
        assert estimate.loss == loss
        assert torch.equal(estimate.losses, opt.last.losses)
        assert torch.equal(estimate.coeffs, opt.last.coeffs)
        assert torch.equal(flat(opt.space), flat(apart.space))


def test_an_estimate_is_of_one_step() -> None:
    model, opt = built()
    estimate = opt.estimate(closure_of(model))
    opt.apply(estimate)
    theta = flat(opt.space)
    with pytest.raises(ValueError, match="an estimate of step 0 from 6 probes, but step 1 from 6 is next"):
        opt.apply(estimate)
    assert torch.equal(flat(opt.space), theta)
    assert opt.steps_taken == 1


def test_an_estimate_of_another_optimizer_is_refused() -> None:
    model, opt = built()
    estimate = opt.estimate(closure_of(model))
    theta = flat(opt.space)
    for other in (dataclasses.replace(estimate, eps=()), dataclasses.replace(estimate, distribution="normal")):
        with pytest.raises(ValueError, match="is not one of this optimizer: apply what its estimate"):
            opt.apply(other)
    assert torch.equal(flat(opt.space), theta)
    assert opt.steps_taken == 0
    opt.apply(estimate)


def test_parameters_written_between_estimate_and_apply_are_taken_in() -> None:
    model, opt = built(lr=0.25, grid=2**-10)
    p = next(model.parameters())
    estimate = opt.estimate(closure_of(model))
    with torch.no_grad():
        p.fill_(0.3)
    opt.apply(estimate)
    size = p.numel()
    moved = flat(opt.space)[:size] - 307 / 1024  # 0.3 on the grid
    torch.testing.assert_close(moved, -0.25 * estimate.gradient.dense(size), rtol=0, atol=2**-10)


def test_the_guard_is_entered_for_each_loss_and_only_there() -> None:
    model, opt = built()
    loss, log = closure_of(model), []

    @contextlib.contextmanager
    def guard():
        log.append("in")
        yield
        log.append("out")

    def closure():
        log.append("loss")
        return loss()

    estimate = opt.estimate(closure, guard=guard)
    assert log == ["in", "loss", "out"] * 12
    opt.apply(estimate)
    assert len(log) == 36


@pytest.mark.parametrize("options", KINDS, ids=name_of)
@pytest.mark.parametrize("eps", [2**-6, None], ids=["eps", "eps tied to lr"])
def test_a_step_with_lr_0_counts_and_changes_nothing(options: dict[str, object], eps: float | None) -> None:
    """As the first step of every schedule with a warm-up."""
    model, opt = built(**{**options, "eps": eps})
    opt.step(closure_of(model))  # rounds the parameters to the grid
    theta = flat(opt.space)
    expected = float(closure_of(model)().detach())
    for group in opt.param_groups:
        group["lr"] = 0.0
    loss = opt.step(closure_of(model))
    assert torch.equal(flat(opt.space), theta)
    assert opt.steps_taken == 2
    assert loss == pytest.approx(expected, rel=0.1) if eps else loss == expected
    other, replayed = built(**{**options, "eps": eps})
    other.load_state_dict({name: x.clone() for name, x in model.state_dict().items()})
    replayed.steps_taken = 1
    for group in replayed.param_groups:
        group["lr"] = 0.0
    replayed.replay(opt.last.coeffs)
    assert torch.equal(flat(replayed.space), theta)


def test_a_warm_up_from_0_learns() -> None:
    model, opt = built(lr=0.05, eps=None)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(step / 5, 1.0))
    losses = []
    for _ in range(40):
        losses.append(opt.step(closure_of(model)))
        schedule.step()
    assert opt.steps_taken == 40
    assert losses[-1] < losses[0]


def test_a_group_with_lr_0_stays_where_it_is() -> None:
    frozen, trained = (torch.nn.Parameter(torch.full((5,), value)) for value in (0.5, 1.0))
    opt = ZeroOrder([{"params": [frozen], "lr": 0.0}, {"params": [trained]}], lr=2**-4, probes=4, grid=2**-12)
    for _ in range(3):
        opt.step(lambda: ((frozen - 1) ** 2 + trained**2).sum())
    assert frozen.tolist() == [0.5] * 5
    assert bool((trained < 1.0).any())


def test_lr_is_not_negative() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="lr must be finite and not negative"):
        ZeroOrder([p], lr=-0.1)
    with pytest.raises(ValueError, match="eps must be positive and finite"):
        ZeroOrder([p], lr=0.1, eps=0.0)
