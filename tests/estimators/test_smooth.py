"""Beyond quadratics: how errors shrink with eps, and the gradient of a small network."""

import pytest
import torch

from tests.estimators.evaluators import Around, probes, seeds_of
from zo_kernels.estimators import ESTIMATORS

NUMEL = 41  # of the network below
GENERATOR = torch.Generator().manual_seed(1)
THETA = torch.randn(NUMEL, generator=GENERATOR, dtype=torch.float64)
INPUTS = torch.randn(16, 4, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randn(16, generator=GENERATOR, dtype=torch.float64)


def cubic(points):
    return (points**3 / 3 + points**2).sum(dim=1) + points.prod(dim=1)


def network(points):
    """Mean squared error of 4 inputs, 6 tanh units with biases, 1 output, its bias and 4 gains: [m, 41] to [m]."""
    first, bias, last, out, gains = points.split([24, 6, 6, 1, 4], dim=1)
    hidden = torch.tanh((INPUTS * gains[:, None]) @ first.view(-1, 4, 6) + bias[:, None])
    return ((hidden @ last[..., None]).squeeze(-1) + out - TARGETS).square().mean(dim=1)


def gradient_of(loss, theta):
    point = theta.clone().requires_grad_()
    return torch.autograd.grad(loss(point[None]).sum(), point)[0]


@pytest.mark.parametrize(("name", "order"), [("fd", 1), ("cd", 2), ("antithetic", 2)])
def test_the_error_of_a_slope_is_of_order_eps_to_the(name, order):
    n, theta = 20, torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    exact = probes(seeds_of(n), 3) @ gradient_of(cubic, theta)
    errors = []
    for eps in (2**-7, 2**-8):
        coeffs = ESTIMATORS[name]()(Around(cubic, theta), seeds_of(n), eps).gradient.coeffs
        errors.append((n * coeffs - exact).abs())
    large = errors[1] > 0.1 * 2.0 ** (-8 * order)  # where the leading term all but cancels, the next one shows
    assert int(large.sum()) > n // 2
    ratio = (errors[0] / errors[1])[large]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0**order), rtol=0.06, atol=0)


def test_antithetic_forward_differences_are_central_differences():
    seeds = seeds_of(50)
    cd, antithetic = (ESTIMATORS[name]()(Around(network, THETA), seeds, 2**-6) for name in ("cd", "antithetic"))
    torch.testing.assert_close(antithetic.gradient.coeffs, cd.gradient.coeffs, rtol=1e-9, atol=1e-13)
    assert torch.equal(antithetic.losses[:-1].view(-1, 2), cd.losses)


@pytest.mark.parametrize("name", ["cd", "fd", "antithetic"])
@pytest.mark.parametrize("distribution", ["rademacher", "normal", "uniform", "sparse-4"])
def test_the_mean_estimate_is_the_gradient_of_a_network(name, distribution):
    n, eps = 4000, 2**-10
    exact = gradient_of(network, THETA)
    gradient = ESTIMATORS[name]()(Around(network, THETA, distribution), seeds_of(n), eps, distribution).gradient
    of_one_nd = n * gradient.coeffs[:, None] * probes(gradient.seeds, NUMEL, distribution)
    z = (of_one_nd.mean(0) - exact) / (of_one_nd.var(0) / n).sqrt()
    assert float(z.abs().max()) < 4.5
    assert float(torch.cosine_similarity(of_one_nd.mean(0), exact, dim=0)) > 0.98  # about 1 / sqrt(1 + d/n)


@pytest.mark.parametrize("name", ["1.5-spsa", "2-spsa"])
def test_the_mean_preconditioned_estimate_points_along_the_gradient_of_a_network(name):
    n = 4000
    exact = gradient_of(network, THETA)
    options = {"saturation": 0.1, "floor": 1e-6}
    gradient = ESTIMATORS[name](**options)(Around(network, THETA), seeds_of(n), 2**-10).gradient
    mean = gradient.coeffs @ probes(gradient.seeds, NUMEL)
    assert float(torch.cosine_similarity(mean, exact, dim=0)) > 0.95
