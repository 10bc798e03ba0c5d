import pytest
import torch

import zo_kernels as zo


def test_dense_is_the_sum_of_its_rows():
    gradient = zo.SeedGradient([5, -7, 5], [0.5, -0.25, 2.0])
    expected = 2.5 * zo.ops.probe(1000, 5, offset=256) - 0.25 * zo.ops.probe(1000, -7, offset=256)
    assert torch.equal(gradient.dense(1000, offset=256), expected)
    assert torch.equal(gradient.scaled(-2.0).dense(1000, offset=256), -2.0 * expected)


def test_immutable():
    coeffs = torch.tensor([1.0, 2.0], dtype=torch.float64)
    gradient = zo.SeedGradient([1, 2], coeffs)
    before = zo.SeedGradient([1, 2], [1.0, 2.0])
    coeffs.zero_()
    gradient.coeffs.zero_()
    gradient.seeds.zero_()
    assert gradient == before
    with pytest.raises(AttributeError):
        gradient.coeffs = coeffs
    assert gradient != before.scaled(2.0)
    assert len(gradient) == 2


@pytest.mark.parametrize(
    ("seeds", "coeffs", "message"),
    [
        ([1, 2], [1.0], "same length"),
        ([[1]], [[1.0]], "one-dimensional"),
        ([1, 2], [1.0, float("nan")], "finite"),
        ([1], [float("inf")], "finite"),
    ],
)
def test_refusals(seeds, coeffs, message):
    with pytest.raises(ValueError, match=message):
        zo.SeedGradient(seeds, coeffs)
