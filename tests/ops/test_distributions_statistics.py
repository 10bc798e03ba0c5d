"""Probes have the moments, tails and independence of their distribution.

The draws are fixed, and bounds are 5 standard deviations of the statistic under the distribution: a failure would be a
fault, not chance.
"""

import math

import numpy as np
import pytest

from tests.cases import DISTRIBUTIONS
from zo_kernels.distributions import draw, variance
from zo_kernels.philox import probe_seeds

N = 2**20
SEEDS = probe_seeds(11, 4, 3).tolist()

# E z^2, z^4, z^6, z^8
MOMENTS = {"normal": (1, 3, 15, 105), "uniform": (1, 9 / 5, 27 / 7, 9)}
MOMENTS |= {name: (variance(name),) * 4 for name in DISTRIBUTIONS if name.startswith("sparse")}

each = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def make(distribution, seed=SEEDS[0], offset=2**41):
    return draw(distribution, N, seed, offset).astype(np.float64)


def assert_mean(x, mean, deviation):
    """x [n] of independent numbers with this mean and standard deviation; the sum of n is 5 off at most."""
    bound = 5 * deviation / math.sqrt(len(x))
    assert abs(x.mean() - mean) < bound, f"mean {x.mean()}, not {mean} to {bound}"


def assert_share(hits, p):
    """hits [n] of independent events of probability p; of rare ones (fewer than one expected) there are below 10."""
    if len(hits) * min(p, 1 - p) > 1:
        assert_mean(hits, p, math.sqrt(p * (1 - p)))
    else:
        assert min(hits.sum(), (~hits).sum()) < 10


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_moments(distribution, seed):
    second, fourth, _, eighth = MOMENTS[distribution]
    assert second == variance(distribution)
    z = make(distribution, seed)
    assert_mean(z, 0, math.sqrt(second))
    assert_mean(z**2, second, math.sqrt(fourth - second**2))
    assert_mean(z**4, fourth, math.sqrt(eighth - fourth**2))
    assert_mean(z**3, 0, math.sqrt(MOMENTS[distribution][2]))


@each
@pytest.mark.parametrize("lag", [1, 2, 31, 32, 64, 96, 128, 2048])
def test_neighbours_are_independent(distribution, lag):
    """Numbers and their squares: at 32 the two of Box and Muller, which share a radius and an angle."""
    second, fourth, *_ = MOMENTS[distribution]
    z = make(distribution)
    a, b = z[:-lag], z[lag:]
    assert_mean(a * b, 0, second)
    assert_mean((a**2 - second) * (b**2 - second), 0, fourth - second**2)
    assert_mean(a**2 * b, 0, math.sqrt(fourth * second))


@each
def test_seeds_and_places_are_independent(distribution):
    second, fourth, *_ = MOMENTS[distribution]
    z = make(distribution)
    for other in (make(distribution, SEEDS[1]), make(distribution, SEEDS[0] ^ 1), make(distribution, offset=2**42)):
        assert_mean(z * other, 0, second)
        assert_mean((z**2 - second) * (other**2 - second), 0, fourth - second**2)


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name.startswith("sparse")])
def test_shares_of_sparse_probes(distribution):
    share = variance(distribution)
    z = make(distribution)
    for sign in (1, -1):
        assert_share(z == sign, share / 2)
    assert set(np.unique(z)) == {-1.0, 0.0, 1.0}
    for k in range(128):  # any place of a block
        assert_share(z[k::128] != 0, share)


def cumulative(distribution, x):
    if distribution == "normal":
        return 0.5 * math.erfc(-x / math.sqrt(2))
    return min(max(0.5 + x / math.sqrt(12), 0.0), 1.0)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_distribution_function(distribution):
    """From the centre to the tails, by counting."""
    z = make(distribution)
    for x in (
        -5,
        -4.5,
        -4,
        -3,
        -2,
        -1.7,
        -1.5,
        -1,
        -0.5,
        -0.1,
        -1e-2,
        -1e-3,
        0,
        1e-3,
        1e-2,
        0.3,
        1,
        1.7,
        2,
        3,
        4,
        4.5,
        5,
    ):
        assert_share(z <= x, cumulative(distribution, x))


def test_normals_reach_the_tails_and_every_direction():
    z = make("normal").reshape(-1, 2, 32)
    x, y = z[:, 0].ravel(), z[:, 1].ravel()
    assert 4.5 < np.abs(z).max() < 6.67
    octant = np.floor(np.arctan2(y, x) / (math.pi / 4)).astype(int) + 4
    for k in range(8):
        assert_share(octant == k, 1 / 8)
    radius = np.hypot(x, y)
    assert_mean(radius**2, 2, 2)
    assert_share(radius < 1e-2, 1 - math.exp(-0.5e-4))
