"""apply_probe: all 16 pairs of input and output dtype, one rounding, and where the result goes."""

import pytest
import torch

import zo_kernels as zo
from tests.cases import DTYPES, EDGE, Guarded, assert_same_bits, engines, make_values, special_values

SIZES = (1, 7, 128, 513, 2500, 70001)

pairs = pytest.mark.parametrize(
    ("dtype", "out_dtype"), [(a, b) for a in DTYPES for b in DTYPES], ids=lambda d: str(d).removeprefix("torch.")
)


def reference(x, alpha, seed, offset, dtype):
    with zo.backend("reference"):
        return zo.ops.apply_probe(x, alpha, seed, offset=offset, dtype=dtype)


@pytest.mark.parametrize("numel", SIZES)
@pairs
def test_parity(dtype, out_dtype, numel):
    x = make_values(numel, dtype, seed=1)
    offset = EDGE - 256 if numel % 2 else 0
    for alpha in (0.375, -1e-6) if numel < 10000 else (-0.7,):
        expected = reference(x, alpha, 11, offset, out_dtype)
        for engine in engines(numel):
            source, out = Guarded(x, lead=1), Guarded(torch.zeros(numel, dtype=out_dtype), lead=3)
            result = zo.ops.apply_probe(source.tensor, alpha, 11, offset=offset, out=out.tensor)
            assert result is out.tensor
            assert_same_bits(out.tensor, expected, engine)
            assert_same_bits(source.tensor, x, f"{engine}, source")
            source.assert_surroundings_untouched(engine)
            out.assert_surroundings_untouched(engine)
            new = zo.ops.apply_probe(x, alpha, 11, offset=offset, dtype=out_dtype)
            assert_same_bits(new, expected, f"{engine}, new tensor")


@pairs
def test_every_rounding_there_is(dtype, out_dtype):
    """A probe of alpha 0 leaves the cast alone: the special values, and each of them one bit up and down."""
    special = special_values(dtype)
    x = torch.cat([special, special.nextafter(torch.tensor(float("inf"), dtype=dtype))])
    x = torch.cat([x, special.nextafter(torch.tensor(-float("inf"), dtype=dtype)), -special]).repeat(3)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for engine in engines():
        actual = zo.ops.apply_probe(x, 0.0, 1, dtype=out_dtype)
        zeros = actual == 0  # x + (+0 or -0): the sign of a zero is the sum's
        expected = x.to(compute)
        expected = (expected.to(torch.float32) if out_dtype.itemsize == 2 else expected).to(out_dtype)
        assert_same_bits(actual[~zeros], expected[~zeros], engine)
        assert_same_bits(actual, reference(x, 0.0, 1, 0, out_dtype), engine)


def every_16_bits(dtype):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_values_of_16_bits(dtype):
    """Each of the 65536 in and out again, and the tie between each and its neighbour, rounded from float32."""
    x = every_16_bits(dtype)
    finite = x[x.isfinite()].to(torch.float32).unique()
    ties = (finite[1:].to(torch.float64) + finite[:-1].to(torch.float64)).div(2).to(torch.float32)
    around = torch.cat([ties, ties.nextafter(torch.tensor(float("inf"))), ties.nextafter(-torch.tensor(float("inf")))])
    for engine in engines():
        for source, alpha, out in ((x, 0.0, dtype), (x, 0.5, torch.float32), (around, 0.0, dtype)):
            actual = zo.ops.apply_probe(source, alpha, 3, dtype=out)
            assert_same_bits(actual, reference(source, alpha, 3, 0, out), engine)
        nonzero = around.to(dtype) != 0
        assert_same_bits(actual[nonzero], around.to(dtype)[nonzero], engine)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_double_is_rounded_by_way_of_float(out_dtype):
    """Just above a tie by less than a float32 shows: to float32 it becomes the tie, which goes to even (down)."""
    half_unit = torch.finfo(out_dtype).eps / 2
    x = torch.full((300,), 1 + half_unit + 2.0**-40, dtype=torch.float64)
    for engine in engines():
        assert_same_bits(zo.ops.apply_probe(x, 0.0, 3, dtype=out_dtype), torch.ones(300, dtype=out_dtype), engine)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_may_be_x_itself(dtype):
    x = make_values(2500, dtype)
    expected = reference(x, 0.5, 3, 128, dtype)
    for engine in engines():
        for out in (lambda t: t, lambda t: t.view(50, 50).view(2500)):
            actual = x.clone()
            zo.ops.apply_probe(actual, 0.5, 3, offset=128, out=out(actual))
            assert_same_bits(actual, expected, engine)


def test_neighbours_in_memory_are_not_an_overlap():
    buffer = torch.zeros(300)
    zo.ops.apply_probe(buffer[:150], 1.0, 3, out=buffer[150:])
    assert not buffer[:150].any()
    assert torch.equal(buffer[150:], zo.ops.probe(150, 3))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 129), (5, 7, 11)])
def test_shapes(shape):
    x = make_values(torch.Size(shape).numel(), torch.float32).view(shape)
    flat = zo.ops.apply_probe(x.flatten(), 0.5, 3)
    out = torch.empty(shape, dtype=torch.float64)
    assert_same_bits(zo.ops.apply_probe(x, 0.5, 3).flatten(), flat)
    assert zo.ops.apply_probe(x, 0.5, 3, out=out).shape == shape
    assert zo.ops.apply_probe_(x, 0.5, 3).shape == shape
    assert_same_bits(x.flatten(), flat)
    assert zo.ops.accumulate_probes_(x, [0.5], [3]).shape == zo.ops.swap_probe_(x, 0.5, 3, 0.5, 3).shape == shape


def test_in_place_ops_return_x():
    x = torch.zeros(5)
    assert zo.ops.apply_probe_(x, 0.5, 3) is x
    assert zo.ops.swap_probe_(x, 0.5, 3, 0.5, 4) is x
    assert zo.ops.accumulate_probes_(x, [0.5], [3]) is x
    assert zo.ops.apply_probe(x, 0.5, 3) is not x
