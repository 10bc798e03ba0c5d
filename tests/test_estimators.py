import pytest
import torch

import zo_kernels as zo
from zo_kernels.ops.quantise import quantise
from zo_kernels.philox import probe_seeds


def seeds_of(n, step=0):
    return torch.from_numpy(probe_seeds(3, step, n))


def quadratic(center, scales):
    """An evaluator of 0.5 * sum scales * (theta - center)^2 at theta = 0, in float64."""

    def evaluate(seeds, eps):
        losses = []
        for seed in seeds.tolist():
            p = zo.ops.probe(len(center), seed, dtype=torch.float64)
            losses.append([float(0.5 * (scales * (sign * eps * p - center) ** 2).sum()) for sign in (1, -1)])
        return torch.tensor(losses, dtype=torch.float64)

    return evaluate


def test_unbiased_with_the_known_variance_on_a_quadratic():
    # For Rademacher probes E[(g.p) p] = g, and coordinate j of one estimate has variance |g|^2 - g_j^2.
    generator = torch.Generator().manual_seed(0)
    center, scales = torch.randn(10, generator=generator).double(), torch.rand(10, generator=generator).double() + 0.5
    exact = -scales * center
    n = 4000
    gradient = zo.estimators.CentralDifference()(quadratic(center, scales), seeds_of(n), 0.1)
    probes_nd = torch.stack([zo.ops.probe(10, seed, dtype=torch.float64) for seed in gradient.seeds.tolist()])
    estimates_nd = n * gradient.coeffs[:, None] * probes_nd  # each of one probe
    quantum = 2.0 ** -quantise(gradient.coeffs.numpy())[1]
    dense = gradient.dense(10, dtype=torch.float64)
    torch.testing.assert_close(dense, estimates_nd.mean(0), rtol=0, atol=n * quantum / 2)
    variance = exact.square().sum() - exact.square()
    z = (estimates_nd.mean(0) - exact) / (variance / n).sqrt()
    assert float(z.abs().max()) < 4.5
    torch.testing.assert_close(estimates_nd.var(0), variance, rtol=0.1, atol=0)


def test_rows_are_equation_2():
    losses = torch.tensor([[3.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    gradient = zo.estimators.CentralDifference().gradient(losses, torch.tensor([8, 9]), 0.25)
    assert gradient == zo.SeedGradient([8, 9], [2.0 / 4 / 0.25, -1.5 / 4 / 0.25])


def test_probes_without_a_finite_pair_are_left_out():
    losses = torch.tensor([[3.0, 1.0], [float("nan"), 2.0], [1.0, float("inf")], [0.5, 2.0]])
    gradient = zo.estimators.CentralDifference().gradient(losses, torch.tensor([8, 1, 2, 9]), 1.0)
    assert gradient == zo.SeedGradient([8, 9], [0.5, -0.375])


def test_refusals():
    estimator = zo.estimators.CentralDifference()
    with pytest.raises(zo.errors.DivergenceError, match="all 2 probes"):
        estimator.gradient(torch.full((2, 2), float("nan")), torch.tensor([1, 2]), 1.0)
    with pytest.raises(ValueError, match="eps must be positive"):
        estimator.gradient(torch.zeros(2, 2), torch.tensor([1, 2]), 0.0)
    with pytest.raises(ValueError, match=r"must have shape \(2, 2\), not \(2,\)"):
        estimator(lambda seeds, eps: torch.zeros(2), torch.tensor([1, 2]), 1.0)
