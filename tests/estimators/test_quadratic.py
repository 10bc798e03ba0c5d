"""Against the exact gradient of a quadratic: the slopes themselves, the bias, the variance."""

import pytest
import torch

import zo_kernels as zo
from tests.estimators.evaluators import Around, Quadratic, probes, seeds_of
from zo_kernels.distributions import variance
from zo_kernels.estimators import ESTIMATORS

# Fourth moment over squared variance.
KURTOSIS = {"rademacher": 1.0, "normal": 3.0, "uniform": 1.8, "sparse-2": 2.0, "sparse-16": 16.0}

LOSS = Quadratic()


def estimate(name, distribution, n, eps=0.1):
    return ESTIMATORS[name]()(Around(LOSS, LOSS.theta, distribution), seeds_of(n), eps, distribution)


@pytest.mark.parametrize("name", ["cd", "antithetic"])
@pytest.mark.parametrize("distribution", KURTOSIS)
def test_unbiased_with_the_known_variance(name, distribution):
    # E[(g.p) p] = s g, and coordinate j of (g.p) p / s has variance |g|^2 + (kurtosis - 2) g_j^2.
    n = 4000
    gradient = estimate(name, distribution, n).gradient
    assert gradient.distribution == distribution
    of_one_nd = n * gradient.coeffs[:, None] * probes(gradient.seeds, len(LOSS.theta), distribution)
    exact = LOSS.gradient
    known = exact.square().sum() + (KURTOSIS[distribution] - 2) * exact.square()
    z = (of_one_nd.mean(0) - exact) / (known / n).sqrt()
    assert float(z.abs().max()) < 4.5
    squares_nd = (of_one_nd - exact).square()
    z = (squares_nd.mean(0) - known) / (squares_nd.var(0) / n).sqrt()
    assert float(z.abs().max()) < 4.5


@pytest.mark.parametrize("distribution", KURTOSIS)
def test_the_mean_of_the_rows_is_the_dense_gradient(distribution):
    gradient = estimate("cd", distribution, 300).gradient
    expected = gradient.coeffs @ probes(gradient.seeds, len(LOSS.theta), distribution)
    torch.testing.assert_close(gradient.dense(len(LOSS.theta), dtype=torch.float64), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distribution", KURTOSIS)
@pytest.mark.parametrize("eps", [0.5, 2**-6])
def test_rows_are_the_slopes(distribution, eps):
    n, s = 40, variance(distribution)
    seeds = seeds_of(n)
    p = probes(seeds, len(LOSS.theta), distribution)
    exact = p @ LOSS.gradient
    bend = ((p @ LOSS.hessian) * p).sum(dim=1)
    u = probes(zo.estimators.spsa.second_seeds(seeds), len(LOSS.theta), distribution)
    across = ((p @ LOSS.hessian) * u).sum(dim=1)
    expected = {
        "cd": exact,
        "fd": exact + eps / 2 * bend,
        "antithetic": exact,
        "1.5-spsa": exact / bend.abs().pow(0.1).clamp(min=1.0),
        "2-spsa": exact / across.abs().pow(0.1).clamp(min=1.0),
    }
    for name in ESTIMATORS:
        coeffs = estimate(name, distribution, n, eps).gradient.coeffs
        torch.testing.assert_close(coeffs, expected[name] / (n * s), rtol=1e-8, atol=1e-9, msg=name)


def test_forward_differences_are_unbiased_on_a_quadratic_all_the_same():
    # The error of a slope, eps/2 p.H p, is even in p: it averages out, but for its variance.
    n, eps = 4000, 0.5
    gradient = estimate("fd", "rademacher", n, eps).gradient
    of_one_nd = n * gradient.coeffs[:, None] * probes(gradient.seeds, len(LOSS.theta))
    z = (of_one_nd.mean(0) - LOSS.gradient) / (of_one_nd.var(0) / n).sqrt()
    assert float(z.abs().max()) < 4.5


@pytest.mark.parametrize("name", ["1.5-spsa", "2-spsa"])
@pytest.mark.parametrize(("saturation", "floor"), [(1.0, 1e-3), (0.5, 2.0), (0.0, 0.25)])
def test_saturation_and_floor(name, saturation, floor):
    seeds, p = seeds_of(20), probes(seeds_of(20), len(LOSS.theta))
    other = p if name == "1.5-spsa" else probes(zo.estimators.spsa.second_seeds(seeds), len(LOSS.theta))
    curvature = ((p @ LOSS.hessian) * other).sum(dim=1)
    expected = p @ LOSS.gradient / 20 / curvature.abs().pow(saturation).clamp(min=floor)
    evaluate = Around(LOSS, LOSS.theta)
    coeffs = ESTIMATORS[name](saturation=saturation, floor=floor)(evaluate, seeds, 0.25).gradient.coeffs
    torch.testing.assert_close(coeffs, expected, rtol=1e-8, atol=0)
