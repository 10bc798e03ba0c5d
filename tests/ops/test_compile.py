"""torch.compile(fullgraph=True): results equal eager ones, and new seeds do not mean new graphs."""

import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import zo_kernels as zo
from tests.cases import assert_same_bits, make_values

SEEDS = (3, -4, 5, 2**62, -(2**63), 2**63 - 1, 0)

DRAWN = {
    "probe": lambda x, a, s, j, d: zo.ops.probe(x.numel(), s, offset=j, dtype=x.dtype, distribution=d) * 2,
    "apply_probe_": lambda x, a, s, j, d: zo.ops.apply_probe_(x, a, s, offset=j, distribution=d),
    "apply_probe": lambda x, a, s, j, d: zo.ops.apply_probe(x, a, s, offset=j, distribution=d) + 1,
    "apply_probe(dtype=)": lambda x, a, s, j, d: zo.ops.apply_probe(
        x, a, s, offset=j, dtype=torch.float16, distribution=d
    ),
    "apply_probe(out=)": lambda x, a, s, j, d: zo.ops.apply_probe(x * 2, a, s, offset=j, out=x, distribution=d),
    "accumulate_probes_": lambda x, a, s, j, d: zo.ops.accumulate_probes_(
        x, [a, 0.5], [s, 17], offset=j, undo_alpha=a, undo_seed=s, distribution=d
    ),
}
FUNCTIONS = {"swap_probe_": lambda x, a, s, j: zo.ops.swap_probe_(x, a, s, -a, 17, offset=j)}
for distribution in ("rademacher", "normal", "sparse-2"):
    for name, op in DRAWN.items():
        FUNCTIONS[name if distribution == "rademacher" else f"{name} {distribution}"] = partial(op, d=distribution)


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compare(compiled, function, x, *args):
    """Result and mutation, on equal copies of x."""
    here, there = x.clone(), x.clone()
    assert_same_bits(compiled(here, *args), function(there, *args), str(args))
    assert_same_bits(here, there, f"x after {args}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_seeds_and_offsets_are_not_compiled_in(name):
    """A graph or two for the first, one for all others. (Of alpha Dynamo makes a constant: one graph per value.)"""
    function = FUNCTIONS[name]
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    x = make_values(1500, torch.float32)
    for step, seed in enumerate((*SEEDS, *range(100, 110))):
        compare(compiled, function, x, 0.5, seed, 2**41 + 128 * step)
    assert backend.frame_count <= 3


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.slow
def test_scales(name):
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for alpha in (0.5, -0.5, 1e-3):
        compare(compiled, function, make_values(1500, torch.float64), alpha, 3, 128)


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_seeds_above_int64(seed):
    function = FUNCTIONS["apply_probe_"]
    compare(torch.compile(function, fullgraph=True, backend="aot_eager"), function, torch.ones(300), 0.5, seed, 0)


def test_rows_as_tensors_of_changing_content_and_length():
    def function(x, coeffs, seeds):
        return zo.ops.accumulate_probes_(x, coeffs, seeds, decay=0.5, grid=2.0**-12, undo_alpha=0.25, undo_seed=4)

    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    x = make_values(1500, torch.bfloat16)
    for n in (5, 5, 6, 7, 96, 200):
        compare(compiled, function, x, torch.randn(n), torch.randint(-(2**63), 2**63 - 1, (n,)))
    assert backend.frame_count <= 3


def test_parameters_changed_without_grad():
    """The way of an optimizer: perturb, evaluate, restore, in one graph."""
    torch.manual_seed(0)  # or the two forwards may happen to differ by little
    model = torch.nn.Linear(30, 20)
    inputs = torch.randn(4, 30)

    def function(alpha, seed):
        with torch.no_grad():
            zo.ops.apply_probe_(model.weight, alpha, seed)
            up = model(inputs).sum()
            zo.ops.swap_probe_(model.weight, -alpha, seed, -alpha, seed)
            down = model(inputs).sum()
            zo.ops.apply_probe_(model.weight, alpha, seed)
            return up - down

    before = model.weight.detach().clone()
    eager = function(0.125, 9)
    with torch.no_grad():
        model.weight.copy_(before)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(0.125, 9), eager)
    assert torch.allclose(model.weight, before, atol=1e-6)
    assert eager.abs() > 0.1  # the forwards saw the perturbed weights


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor():
    """Every op in one graph, between operations that Inductor fuses and might move across a write."""

    def function(x, alpha, seed):
        y = x * 2
        zo.ops.apply_probe_(y, alpha, seed)
        half = zo.ops.apply_probe(y + 1, alpha, seed, offset=128, dtype=torch.bfloat16)
        zo.ops.swap_probe_(y, -alpha, seed, alpha, seed + 1)
        z = y * 3
        zo.ops.accumulate_probes_(y, torch.tensor([0.5, alpha], dtype=torch.float64), torch.tensor([seed, 5]))
        out = zo.ops.apply_probe(y, alpha, 5, out=torch.empty_like(y))
        return z, half.float() - 1, out + zo.ops.probe(y.numel(), seed, offset=256), y

    compiled = torch.compile(function, fullgraph=True, backend="inductor")
    x = torch.randn(1000)
    for alpha, seed in ((0.5, 3), (0.25, -4), (0.125, 2**62)):
        for actual, expected in zip(compiled(x, alpha, seed), function(x, alpha, seed), strict=True):
            assert_same_bits(actual, expected, f"{alpha}, {seed}")
