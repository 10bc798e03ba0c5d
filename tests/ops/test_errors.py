"""Everything that is refused: the type of the error, one sentence that names what is wrong, and x as it was."""

import re
from functools import partial

import numpy as np
import pytest
import torch

import zo_kernels as zo
from tests.cases import DISTRIBUTIONS, DTYPES, bits

NAN, INF = float("nan"), float("inf")
BLOCK = 128

# Ops as functions of x and of what may be wrong with a call.
OPS = {
    "apply_probe_": lambda x, alpha=0.5, seed=3, **at: zo.ops.apply_probe_(x, alpha, seed, **at),
    "apply_probe": lambda x, alpha=0.5, seed=3, **at: zo.ops.apply_probe(x, alpha, seed, **at),
    "apply_probe(out=x)": lambda x, alpha=0.5, seed=3, **at: zo.ops.apply_probe(x, alpha, seed, out=x, **at),
    "swap_probe_ from": lambda x, alpha=0.5, seed=3, **at: zo.ops.swap_probe_(x, alpha, seed, 0.5, 3, **at),
    "swap_probe_ to": lambda x, alpha=0.5, seed=3, **at: zo.ops.swap_probe_(x, 0.5, 3, alpha, seed, **at),
    "accumulate_probes_": lambda x, alpha=0.5, seed=3, **at: zo.ops.accumulate_probes_(
        x, [0.5], [seed], undo_alpha=alpha, undo_seed=4, **at
    ),
    "accumulate_probes_ undo": lambda x, alpha=0.5, seed=3, **at: zo.ops.accumulate_probes_(
        x, [0.5], [3], undo_alpha=alpha, undo_seed=seed, **at
    ),
}
# But for swap_probe_, the same of each distribution.
OPS |= {
    f"{name} {distribution}": partial(op, distribution=distribution)
    for name, op in OPS.items()
    if "swap" not in name
    for distribution in DISTRIBUTIONS
}

each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
each_distribution = pytest.mark.parametrize("distribution", ["rademacher", *DISTRIBUTIONS])
each_backend = pytest.mark.parametrize("name", ["cpu", "reference"])


def assert_refused(call, error, message, *unchanged):
    before = [(bits(t).clone(), t._version) for t in unchanged]
    with pytest.raises(error) as info:
        call()
    assert info.type is error  # not merely a subclass
    text = str(info.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert not text.endswith(".")
    assert len(text) < 200
    for t, (content, version) in zip(unchanged, before, strict=True):
        assert torch.equal(bits(t), content)
        assert t._version == version


@each_op
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_dtype(op, dtype):
    x = torch.ones(5).to(dtype)
    expected = f"dtype must be one of torch.float32, torch.float64, torch.bfloat16, torch.float16, not {dtype}"
    assert_refused(lambda: op(x), TypeError, expected)
    assert torch.equal(x.to(torch.complex64), torch.ones(5, dtype=torch.complex64))


@each_op
def test_layout(op):
    buffer = torch.ones(8, 6)
    for x in (buffer.t(), buffer[:, :3], buffer.flatten()[::2], torch.ones(1).expand(5)):
        assert_refused(lambda: op(x), ValueError, r"^x must be contiguous; pass x.contiguous\(\) or a view", buffer)  # noqa: B023
    assert_refused(lambda: op(torch.ones(2, 2).to_sparse()), ValueError, "^x must be contiguous")


@each_op
@pytest.mark.parametrize("offset", [-128, -1, 1, 64, 127, 2**40 + 5, -(2**63), 2**63, 2**64])
def test_offset(op, offset):
    x = torch.ones(5)
    expected = f"^offset must be a non-negative multiple of 128, not {offset}$"
    if offset >= 2**63:
        expected = rf"^offset .*2\^63.*{offset}"
    assert_refused(lambda: op(x, offset=offset), ValueError, expected, x)


@each_op
def test_end_of_the_index_space(op):
    last = 2**63 - BLOCK
    x = torch.ones(BLOCK)
    expected = rf"^offset \+ numel must stay below 2\^63, but offset is {last} and numel 128$"
    assert_refused(lambda: op(x, offset=last), ValueError, expected, x)
    op(x[:-1], offset=last)


@each_op
@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 10**30])
def test_seed(op, seed):
    x = torch.ones(5)
    assert_refused(lambda: op(x, seed=seed), ValueError, f"^seed must fit 64 bits, not {seed}$", x)


@each_op
@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alpha(op, name, dtype):
    x = torch.ones(5, dtype=dtype)
    with zo.backend(name):
        for alpha in (NAN, INF, -INF):
            assert_refused(lambda: op(x, alpha=alpha), ValueError, rf"alpha is not finite: {alpha}$", x)  # noqa: B023
        for alpha in (1e39, -3.5e38):
            if dtype == torch.float64:
                assert op(x.clone(), alpha=alpha).isfinite().all()
            else:
                assert_refused(lambda: op(x, alpha=alpha), ValueError, "alpha is too large for float32: ", x)  # noqa: B023
        op(x.clone(), alpha=torch.finfo(torch.float32).max)


@each_distribution
def test_names_the_scalar(distribution):
    x = torch.ones(5)
    assert_refused(lambda: zo.ops.swap_probe_(x, 1.0, 3, NAN, 4), ValueError, "^next_alpha is not finite", x)
    assert_refused(lambda: zo.ops.swap_probe_(x, NAN, 3, 1.0, 4), ValueError, "^alpha is not finite", x)
    for option in ("decay", "undo_alpha"):
        for value in (NAN, INF):
            call = lambda: zo.ops.accumulate_probes_(x, [1.0], [3], distribution=distribution, **{option: value})  # noqa: B023, E731
            assert_refused(call, ValueError, f"^{option} is not finite: {value}$", x)


@pytest.mark.parametrize("grid", [3.0, -1.0, -0.25, NAN, INF, 2.0**127, 2.0**-127, 5e-324, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_distribution
def test_grid(distribution, grid, dtype):
    x = torch.ones(5, dtype=dtype)
    expected = rf"^grid must be 0 or a power of two between 2\^-126 and 2\^126, not {re.escape(str(grid))}$"
    call = lambda: zo.ops.accumulate_probes_(x, [1.0], [3], grid=grid, distribution=distribution)  # noqa: E731
    assert_refused(call, ValueError, expected, x)


def test_probe():
    assert_refused(lambda: zo.ops.probe(-1, 3), ValueError, "^numel must not be negative, but is -1$")
    assert_refused(lambda: zo.ops.probe(5, 2**64), ValueError, "^seed must fit 64 bits")
    assert_refused(
        lambda: zo.ops.probe(5, 3, offset=5), ValueError, "^offset must be a non-negative multiple .* not 5$"
    )
    assert_refused(lambda: zo.ops.probe(5, 3, dtype=torch.int8), TypeError, "not torch.int8$")
    assert_refused(lambda: zo.ops.probe(128, 3, offset=2**63 - 128), ValueError, r"^offset \+ numel must stay below")


@each_distribution
def test_out(distribution):
    x, short, column = torch.ones(6), torch.ones(5), torch.ones(6, 2)[:, 0]
    drawn = {"distribution": distribution}
    probe = lambda out, **options: lambda: zo.ops.apply_probe(x, 1.0, 3, out=out, **drawn, **options)  # noqa: E731
    assert_refused(probe(short), ValueError, r"^out has shape \(5,\), but x has \(6,\)$", x, short)
    assert_refused(probe(x.view(2, 3)), ValueError, r"^out has shape \(2, 3\), but x has \(6,\)$", x)
    assert_refused(probe(column), ValueError, "^out must be contiguous", x, column)
    assert_refused(probe(torch.ones(6, device="meta")), ValueError, "^out is on meta, but x is on cpu$", x)
    assert_refused(probe(torch.ones(6, dtype=torch.int32)), TypeError, "not torch.int32$", x)
    assert_refused(
        probe(torch.ones(6), dtype=torch.float16), TypeError, "^dtype is torch.float16, but out has torch.float32", x
    )
    out = torch.ones(6)
    zo.ops.apply_probe(x, 1.0, 3, out=out, dtype=torch.float32, **drawn)  # the same twice is fine
    assert torch.equal(out, 1 + zo.ops.probe(6, 3, **drawn))
    leaf = torch.nn.Parameter(torch.ones(6))
    assert_refused(probe(leaf), RuntimeError, "out requires a gradient: use torch.no_grad", x)


@each_distribution
def test_out_overlaps_x(distribution):
    buffer = torch.ones(100)
    x = buffer[10:60]
    for start in (0, 9, 11, 50):
        out = buffer[start : start + 50]
        expected = "^out overlaps x in memory: pass x itself or separate memory$"
        call = lambda: zo.ops.apply_probe(x, 1.0, 3, out=out, distribution=distribution)  # noqa: B023, E731
        assert_refused(call, ValueError, expected, buffer)
    for dtype in (torch.float16, torch.float64):  # the same address, but not the same elements
        out = buffer.view(dtype)[: 25 if dtype == torch.float64 else 50]
        x = buffer[: len(out)]
        call = lambda: zo.ops.apply_probe(x, 1.0, 3, out=out, distribution=distribution)  # noqa: B023, E731
        assert_refused(call, ValueError, "^out overlaps x", buffer)
    halves = torch.ones(50, dtype=torch.float16)
    call = lambda: zo.ops.apply_probe(  # noqa: E731
        halves, 1.0, 3, out=halves.view(torch.bfloat16), distribution=distribution
    )
    assert_refused(call, ValueError, "^out overlaps", halves)


@pytest.mark.parametrize(
    ("coeffs", "seeds", "error", "message"),
    [
        ([1.0, 2.0], [1], ValueError, "^coeffs and seeds must have the same length, not 2 and 1$"),
        ([], [1], ValueError, "^coeffs and seeds must have the same length, not 0 and 1$"),
        (5.0, [1], ValueError, "^coeffs and seeds must have one dimension, not 0 and 1$"),
        (torch.ones(1, 1), torch.ones(1, 1).long(), ValueError, "must have one dimension, not 2 and 2$"),
        ([1.0], torch.ones(1), TypeError, "seeds int64, not torch.float64 and torch.float32$"),
        ([1.0], torch.ones(1, dtype=torch.int32), TypeError, "seeds int64, not torch.float64 and torch.int32$"),
        ([1.0], [1.5], TypeError, "seed"),
        ([1.0, NAN], [1, 2], ValueError, r"^coefficients must be finite, but coeffs\[1\] is nan$"),
        ([INF], [1], ValueError, r"^coefficients must be finite, but coeffs\[0\] is inf$"),
        (torch.tensor([-INF]), torch.tensor([1]), ValueError, r"coeffs\[0\] is -inf$"),
        ([2.0**126] * 2, [1, 2], ValueError, "^coefficients are too large for float32"),
        ([2.0**127], [1], ValueError, "^coefficients are too large for float32"),
        ([1e308] * 2, [1, 2], ValueError, "^coefficients are too large for float32"),
        (["a"], [1], ValueError, "coeffs must be numbers"),
        (np.ones(2), np.ones(3, np.int64), ValueError, "same length, not 2 and 3$"),
    ],
)
@each_backend
@each_distribution
def test_rows(distribution, name, coeffs, seeds, error, message):
    x = torch.ones(5)
    with zo.backend(name):
        call = lambda: zo.ops.accumulate_probes_(x, coeffs, seeds, distribution=distribution)  # noqa: E731
        assert_refused(call, error, message, x)


def test_registered_op_takes_float64_rows():
    x, seeds = torch.ones(5), torch.tensor([1])
    options = {"offset": 0, "decay": 1.0, "grid": 0.0, "undo_alpha": 0.0, "undo_seed": 0}
    op = torch.ops.zo_kernels.accumulate_probes_
    assert_refused(
        lambda: op(x, torch.ones(1), seeds, **options), TypeError, "^coeffs must be float64 and seeds int64", x
    )


def test_a_seed_is_a_whole_number():
    x = torch.ones(5)
    for op in OPS.values():
        assert_refused(lambda: op(x, seed=1.5), TypeError, "seed", x)  # noqa: B023


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: zo.ops.apply_probe_([1.0], 0.5, 1), "^x must be a tensor, not list$"),
        (lambda x: zo.ops.apply_probe_(x, 0.5, 1, offset=128.0), r"^offset must be an integer, not 128\.0$"),
        (lambda x: zo.ops.probe(1.5, 1), r"^numel must be an integer, not 1\.5$"),
        (lambda x: zo.ops.accumulate_probes_(x, torch.tensor([1j]), [1]), "^coeffs must be real numbers"),
        (lambda x: zo.ops.accumulate_probes_(x, [], [], rounding_seed=1), "^rounding_seed is for bfloat16 and float16"),
        (lambda x: zo.ops.accumulate_probes_(x.half(), [], [], rounding_seed=0.5), "^a seed must be an integer"),
        (lambda x: zo.ops.apply_probe_(x.int(), 0.5, 1), "^x's dtype must be one of .*, not torch.int32$"),
    ],
)
def test_arguments_of_a_wrong_type(call, message):
    x = torch.ones(5)
    assert_refused(lambda: call(x), TypeError, message, x)
