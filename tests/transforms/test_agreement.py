"""Gradient agreement filtering, on vectors and on the gradients of a network."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.estimators.evaluators import probes, seeds_of
from zo_kernels.transforms import agree

vectors = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=2, max_size=8)


def distance(a, b):
    return 1 - float(a @ b / (a.norm() * b.norm())) if bool(a.any()) and bool(b.any()) else 1.0


@given(rows=vectors, max_cosine_distance=st.sampled_from([0.05, 0.31, 0.97, 1.03, 1.9]))
def test_it_is_the_definition(rows, max_cosine_distance):
    micro = torch.tensor(rows, dtype=torch.float64)
    kept = [0]
    for i in range(1, len(micro)):
        if distance(micro[kept].sum(0), micro[i]) <= max_cosine_distance:
            kept.append(i)
    expected = micro[kept].mean(0) if len(kept) > 1 else torch.zeros(3).double()
    before = micro.clone()
    mean, mask = agree(micro, max_cosine_distance)
    assert mask.nonzero().flatten().tolist() == kept
    torch.testing.assert_close(mean, expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(micro, before)


def test_the_order_decides():
    along, across, back = torch.eye(2).double()[0], torch.eye(2).double()[1], torch.tensor([-1.0, 0.2]).double()
    assert agree(torch.stack([along, across, back]), 1.0)[1].tolist() == [True, True, False]
    assert agree(torch.stack([back, across, along]), 1.0)[1].tolist() == [True, True, False]
    assert agree(torch.stack([along, back, across]), 0.5)[1].tolist() == [True, False, False]


def test_the_distance_is_to_the_sum_of_those_kept():
    # The third is 90 degrees from the first, 45 from the sum of the first two.
    micro = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]]).double()
    assert agree(micro, 0.6)[1].tolist() == [True, True, True]
    assert agree(micro[[0, 2]], 0.6)[1].tolist() == [True, False]


def test_nobody_agrees_with_the_first():
    mean, kept = agree(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-2.0, 1.0]]), 0.9)
    assert kept.tolist() == [True, False, False]
    assert mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_any_magnitude(size):
    micro = torch.tensor([[1.0, 2.0], [1.0, 1.9], [2.0, -1.0]]).double()
    mean, kept = agree(size * micro, 0.1)
    assert kept.tolist() == [True, True, False]
    torch.testing.assert_close(mean / size, micro[:2].mean(0))


@given(rows=vectors)
def test_distance_2_keeps_all(rows):
    micro = torch.tensor(rows, dtype=torch.float32) / 3
    assert bool(agree(micro, 2.0)[1].all())
    assert bool(agree(torch.stack([micro[0], -micro[0]]), 2.0)[1].all())


def micro_gradients(m=6, d_hidden=400):
    """Gradients of a tanh network on m micro-batches, which share most of what they teach: float64 [m, d]."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Linear(40, d_hidden), torch.nn.Tanh(), torch.nn.Linear(d_hidden, 1)).double()
    rule, gradients = torch.randn(40, 1).double(), []
    for i in range(m):
        inputs = torch.randn(64, 40).double()
        targets = (-1 if i == 3 else 1) * 8 * torch.tanh(inputs @ rule)  # one micro-batch is mislabelled
        loss = (net(inputs) - targets).square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    return torch.stack(gradients)


def cosines(rows):
    unit = rows / rows.norm(dim=1, keepdim=True)
    return unit @ unit.T


@pytest.mark.parametrize("n", [8, 32, 96])
def test_cosines_of_coefficients_are_those_of_gradients(n):
    dense_md = micro_gradients()
    numel = dense_md.shape[1]
    p = probes(seeds_of(n), numel)
    coeffs_mn = dense_md @ p.T / n  # central differences, as eps goes to 0
    off = (cosines(coeffs_mn) - cosines(coeffs_mn @ p)).abs()
    assert float(off.max()) < n / numel**0.5
    # Those of the gradients that the probes estimate: a random projection's error.
    assert float((cosines(coeffs_mn) - cosines(dense_md)).abs().max()) < 3 / n**0.5


def test_coefficients_agree_where_gradients_do():
    dense_md = micro_gradients()
    p = probes(seeds_of(96), dense_md.shape[1])
    coeffs_mn = dense_md @ p.T / 96
    mean_d, kept = agree(dense_md, 1.0)
    assert kept.tolist() == [True, True, True, False, True, True]
    mean_n, kept_n = agree(coeffs_mn, 1.0)
    assert torch.equal(kept_n, kept)
    assert torch.equal(agree(coeffs_mn @ p, 1.0)[1], kept)
    torch.testing.assert_close(mean_n, mean_d @ p.T / 96)


@pytest.mark.parametrize(
    ("micro", "message"),
    [
        (torch.zeros(4), r"two or more micro-gradients \[m, n\], not a tensor of shape \(4,\)"),
        (torch.zeros(1, 4), r"not a tensor of shape \(1, 4\)"),
        (torch.tensor([[1.0], [math.nan]]), "must be finite"),
    ],
)
def test_micro_gradients_that_are_refused(micro, message):
    with pytest.raises(ValueError, match=message):
        agree(micro, 0.5)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"floating-point numbers, not torch\.int64"):
        agree(torch.ones(2, 2, dtype=torch.int64), 0.5)


@pytest.mark.parametrize("max_cosine_distance", [-0.1, 2.1, math.nan])
def test_distances_out_of_range(max_cosine_distance):
    with pytest.raises(ValueError, match=r"max_cosine_distance must be in \[0, 2\]"):
        agree(torch.ones(2, 2), max_cosine_distance)
