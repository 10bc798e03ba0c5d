"""apply_probes: both signs of many probes in one call, each what apply_probe makes of it."""

import pytest
import torch

import zo_kernels as zo
from tests.cases import DTYPES, FEW_CASES, SEEDS, assert_same_bits, bits, make_values
from tests.ops.test_errors import INF, NAN, assert_refused

each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


def one_by_one(x, alpha, seeds, offset, dtype):
    members = [
        zo.ops.apply_probe(x, sign * alpha, seed, offset=offset, dtype=dtype) for seed in seeds for sign in (1, -1)
    ]
    return torch.stack(members).view(len(seeds), 2, *x.shape)


@each_backend
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_is_apply_probe_for_each_seed_and_sign(case, out_dtype, backend):
    x = make_values(case.numel, case.dtype)
    with zo.backend(backend):
        for alpha in (0.5, -0.0, 1e-41):
            expected = one_by_one(x, alpha, SEEDS, case.offset, out_dtype)
            actual = zo.ops.apply_probes(x, alpha, SEEDS, offset=case.offset, dtype=out_dtype)
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 7, 11)])
def test_shapes_and_where_the_arguments_come_from(shape):
    x = make_values(torch.Size(shape).numel(), torch.float32).view(shape)
    expected = one_by_one(x, 0.25, SEEDS, 128, torch.float32)
    seeds = torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in SEEDS])
    out = torch.full((len(SEEDS), 2, *shape), NAN)
    assert zo.ops.apply_probes(x, torch.tensor([0.25], dtype=torch.float64), seeds, offset=128, out=out) is out
    assert_same_bits(out, expected)
    assert_same_bits(zo.ops.apply_probes(x, 0.25, seeds.repeat_interleave(2)[::2], offset=128), expected)
    assert zo.ops.apply_probes(x, 0.25, []).shape == (0, 2, *shape)


def test_a_write_is_visible_to_autograd_and_x_is_not_written():
    x, out = torch.zeros(200), torch.zeros(1, 2, 200)
    before = x._version, out._version
    zo.ops.apply_probes(x, 1.0, [3], out=out)
    assert x._version == before[0]
    assert out._version > before[1]
    assert not x.any()


def test_in_a_compiled_function():
    def both(x, out):
        return zo.ops.apply_probes(x * 2, 0.5, torch.tensor([3, -4]), offset=128, out=out).sum(dim=0)

    x, out = torch.arange(300.0), torch.empty(2, 2, 300)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x, out), both(x, torch.empty(2, 2, 300)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": NAN}, ValueError, "^alpha is not finite: nan$"),
        ({"alpha": INF}, ValueError, "^alpha is not finite"),
        ({"alpha": 1e39}, ValueError, "^alpha is too large for float32"),
        ({"alpha": torch.tensor(0.5)}, TypeError, "^alpha must be one float64, not torch.float32"),
        ({"alpha": torch.zeros(2, dtype=torch.float64)}, TypeError, r"^alpha must be one float64, not .* \[2\]$"),
        ({"seeds": torch.zeros(2)}, TypeError, "^seeds must be an int64 tensor of one dimension, not torch.float32"),
        ({"seeds": torch.zeros(1, 2, dtype=torch.int64)}, TypeError, r"^seeds must be an int64 .* \[1, 2\]$"),
        ({"seeds": [1, 2, 3]}, ValueError, r"^out must have shape \[3, 2, 5\], not \[2, 2, 5\]$"),
        ({"seeds": [0.5, 1]}, TypeError, "^a seed must be an integer, not 0.5$"),
        ({"seeds": [2**64, 1]}, ValueError, "^seed must fit 64 bits"),
        ({"seeds": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "^seeds is on meta, but must be on"),
        ({"offset": 64}, ValueError, "^offset must be a non-negative multiple of 128"),
        ({"dtype": torch.float64}, TypeError, "^dtype is torch.float64, but out has torch.float32"),
        ({"out": torch.zeros(2, 2, 5, dtype=torch.int32)}, TypeError, "^out's dtype must be one of"),
        ({"out": torch.zeros(2, 2, 10)[..., ::2]}, ValueError, "^out must be contiguous"),
        ({"out": torch.zeros(2, 2, 5, device="meta")}, ValueError, "^out is on meta, but x is on cpu$"),
    ],
)
def test_refusals(arguments, error, message):
    x, out = torch.ones(5), torch.zeros(2, 2, 5)
    call = {"alpha": 0.5, "seeds": [1, 2], "out": out, **arguments}
    assert_refused(lambda: zo.ops.apply_probes(x, **call), error, message, x, out)


def test_refuses_out_over_x():
    buffer = torch.zeros(30)
    x, out = buffer[16:21], buffer[:20].view(2, 2, 5)
    assert_refused(lambda: zo.ops.apply_probes(x, 1.0, [1, 2], out=out), ValueError, "^out overlaps x", buffer)
    zo.ops.apply_probes(buffer[20:25], 1.0, [1, 2], out=out)
    assert bool((bits(out) != 0).all())


def test_refuses_what_requires_a_gradient():
    leaf = torch.nn.Parameter(torch.ones(5))
    with pytest.raises(RuntimeError, match="not differentiable, but x requires a gradient"):
        zo.ops.apply_probes(leaf, 0.5, [1])
    with torch.no_grad():
        assert zo.ops.apply_probes(leaf, 0.5, [1]).shape == (1, 2, 5)
