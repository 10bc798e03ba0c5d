"""scale, scale_by_lr, clip_coeffs, clip_norm."""

import math

import pytest
import torch

from tests.estimators.evaluators import probes
from tests.transforms.cases import CONTEXT, one, table
from zo_kernels.transforms import clip_coeffs, clip_norm, scale, scale_by_lr


def test_scale_and_scale_by_lr():
    assert one(scale(-0.5), [1.0, -3.0]) == [-0.5, 1.5]
    assert one(scale_by_lr(), [1.0, -3.0]) == [0.125, -0.375]


def test_clip_coeffs_cuts_each():
    assert one(clip_coeffs(2.0), [1.0, -3.0, 2.0, 5.0]) == [1.0, -2.0, 2.0, 2.0]


@pytest.mark.parametrize("distribution", ["rademacher", "normal", "uniform", "sparse-4"])
def test_clip_norm_is_of_the_gradient_written_out(distribution):
    numel = 100_000
    gradient = table([0.5, -2.0, 0.25, 3.0], distribution)
    long = float(torch.linalg.vector_norm(written(gradient, numel)))
    context = CONTEXT._replace(numel=numel)
    for limit in (0.01, 0.5 * long, 0.97 * long):
        clipped, _ = clip_norm(limit).update(gradient, {}, context)
        assert float(torch.linalg.vector_norm(written(clipped, numel))) == pytest.approx(limit, rel=4 / numel**0.5)
        torch.testing.assert_close(clipped.coeffs / clipped.coeffs[0], gradient.coeffs / gradient.coeffs[0])
    assert clip_norm(1.03 * long).update(gradient, {}, context)[0] == gradient


def written(gradient, numel):
    return gradient.coeffs @ probes(gradient.seeds, numel, gradient.distribution)


@pytest.mark.parametrize("largest", [1e308, 1.0, 1e-200, 1e-310])
def test_clip_norm_of_any_magnitude(largest):
    limit = 1e-311
    coeffs = one(clip_norm(limit), [largest, -largest, 0.0], CONTEXT._replace(numel=2))
    assert coeffs == pytest.approx([limit / 2, -limit / 2, 0.0], rel=1e-9)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("build", [clip_coeffs, clip_norm])
def test_limits_out_of_range(build, limit):
    with pytest.raises(ValueError, match=f"{build.__name__} takes a positive and finite limit, not {limit}"):
        build(limit)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_factors_out_of_range(factor):
    with pytest.raises(ValueError, match="scale takes a finite factor"):
        scale(factor)
