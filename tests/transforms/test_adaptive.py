"""fzoo and meazo: the updates of their papers, written out with dense probes."""

import math

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.transforms.cases import CONTEXT, one, run, table
from zo_kernels.transforms import fzoo, meazo

LR, EPS, PROBES, STEPS = 2.0**-7, 2.0**-6, 6, 4


def loss_at(theta: Tensor) -> Tensor:
    """Not quadratic, so that one-sided and central differences are not the same."""
    scaled = torch.arange(1, len(theta) + 1, dtype=theta.dtype) * (theta - 0.3)
    return scaled.square().mean() + scaled.pow(3).mean()


def trained(estimator: str, transforms: object) -> Tensor:
    theta = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    opt = zo.optim.ZeroOrder(
        [theta], LR, eps=EPS, probes=PROBES, seed=3, estimator=estimator, transforms=transforms, mode="shadow"
    )
    for _ in range(STEPS):
        opt.step(lambda: loss_at(theta))
    return theta.detach()


def probes_of(step: int) -> Tensor:
    seeds = zo.philox.probe_seeds(3, step, PROBES).tolist()
    return torch.stack([zo.ops.probe(5, seed, dtype=torch.float64) for seed in seeds])


def test_fzoo_is_the_papers_update() -> None:
    """theta' = theta - lr g / sigma.

    g = sum_i (l_i - l_0) u_i / (eps N) and sigma^2 = sum_i (l_i - mean)^2 / (N - 1).
    """
    theta = torch.zeros(5, dtype=torch.float64)
    for step in range(STEPS):
        u = probes_of(step)
        losses = torch.stack([loss_at(theta + EPS * each) for each in u])
        gradient = ((losses - loss_at(theta))[:, None] * u).sum(dim=0) / (EPS * PROBES)
        theta = theta - LR * gradient / losses.std(correction=1)
    torch.testing.assert_close(trained("fd", fzoo()), theta, rtol=1e-5, atol=1e-7)  # coefficients are float32
    assert (theta.abs() > 0.01).any()


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_meazo_is_the_papers_update(beta: float) -> None:
    """theta' = theta - lr / (sqrt(v / (1 - beta^t)) + 1e-8) * mean_i(d_i u_i), with v of the mean of the d_i."""
    theta, v = torch.zeros(5, dtype=torch.float64), 0.0
    for step in range(STEPS):
        u = probes_of(step)
        d = torch.stack([(loss_at(theta + EPS * each) - loss_at(theta - EPS * each)) / (2 * EPS) for each in u])
        v = beta * v + (1 - beta) * float(d.mean()) ** 2
        theta = theta - LR / (math.sqrt(v / (1 - beta ** (step + 1))) + 1e-8) * (d[:, None] * u).mean(dim=0)
    torch.testing.assert_close(trained("cd", f"meazo:{beta}"), theta, rtol=1e-4, atol=1e-6)
    assert (theta.abs() > 0.01).any()


def test_neither_depends_on_the_scale_of_the_loss() -> None:
    coeffs = [0.5, -2.0, 0.25, 3.0]
    for transform in (fzoo(), meazo(0.5)):
        expected = one(transform, coeffs)
        for factor in (0.25, 2.0**300):  # and what MEAZO adds to its denominator
            assert one(transform, [factor * c for c in coeffs]) == pytest.approx(expected, rel=1e-6)


def test_fzoo_of_losses_that_say_nothing_is_zero() -> None:
    for coeffs in ([2.0], [0.1] * 7, [0.0, 0.0]):
        assert one(fzoo(), coeffs) == [0.0] * len(coeffs)
    assert one(fzoo(), [1.0, 2.0], CONTEXT._replace(eps=0.0)) == [0.0, 0.0]


def test_a_step_without_rows_does_not_count_for_meazo() -> None:
    first = table([0.5, 1.5])
    assert run(meazo(0.9), [first, table([]), first])[1]["steps"] == 2
    assert run(meazo(0.9), [table([]), first])[0] == run(meazo(0.9), [first])[0]


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_meazo_refuses_a_beta_out_of_range(beta: float) -> None:
    with pytest.raises(ValueError, match=r"meazo takes a beta in \[0, 1\), not"):
        meazo(beta)
