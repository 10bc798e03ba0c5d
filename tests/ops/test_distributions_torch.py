"""The ops for distributions as torch sees them: opcheck, fake tensors, version counters, torch.compile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import zo_kernels as zo
from tests.cases import DISTRIBUTIONS, FEW_CASES, assert_same_bits, make_values

OPS = torch.ops.zo_kernels


def arguments(case, distribution):
    x = make_values(case.numel, case.dtype).nan_to_num(0.5)  # opcheck takes a NaN for a difference
    out = torch.zeros(case.numel, dtype=torch.bfloat16)
    rows = torch.tensor([0.5, -0.25], dtype=torch.float64), torch.tensor([7, -1])
    at = {"offset": case.offset}
    return {
        "probe_from": ((distribution, case.numel, 7), {"dtype": case.dtype, "device": torch.device("cpu"), **at}),
        "apply_probe_from_": ((distribution, x, 0.5, 7), at),
        "apply_probe_from": ((distribution, x, 0.5, -7), {"dtype": torch.float16, **at}),
        "apply_probe_from_out": ((distribution, x, out, 0.5, 7), at),
        "accumulate_probes_from_": (
            (distribution, x, *rows),
            {"decay": 0.5, "grid": 2.0**-10, "undo_alpha": 0.5, "undo_seed": -7, **at},
        ),
    }


NAMES = tuple(arguments(FEW_CASES[0], "normal"))


def test_every_op_is_here():
    registered = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    assert sorted(NAMES) == sorted(name for space, name in registered if space == "zo_kernels" and "_from" in name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_opcheck(case, name):
    for distribution in ("normal", "sparse-4"):
        args, kwargs = arguments(case, distribution)[name]
        torch.library.opcheck(getattr(OPS, name), args, kwargs)


FUNCTIONS = {
    "probe": lambda x, a, s, j, d: zo.ops.probe(x.numel(), s, offset=j, dtype=x.dtype, distribution=d) * 2,
    "apply_probe_": lambda x, a, s, j, d: zo.ops.apply_probe_(x, a, s, offset=j, distribution=d),
    "apply_probe": lambda x, a, s, j, d: zo.ops.apply_probe(x, a, s, offset=j, dtype=torch.float16, distribution=d),
    "apply_probe(out=)": lambda x, a, s, j, d: zo.ops.apply_probe(x * 2, a, s, offset=j, out=x, distribution=d),
    "accumulate_probes_": lambda x, a, s, j, d: zo.ops.accumulate_probes_(
        x, [a, 0.5], [s, 17], offset=j, undo_alpha=a, undo_seed=s, distribution=d
    ),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
IN_PLACE = {name: function for name, function in FUNCTIONS.items() if name not in ("probe", "apply_probe")}


@each_function
def test_compiled(function):
    """One graph or two for all seeds and offsets of a distribution."""
    torch._dynamo.reset()
    x = make_values(1500, torch.float32)
    for distribution in ("normal", "sparse-2"):
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        for step, seed in enumerate((3, -4, 5, 2**62, -(2**63), 100, 101)):
            here, there = x.clone(), x.clone()
            at = (0.5, seed, 2**41 + 128 * step, distribution)
            assert_same_bits(compiled(here, *at), function(there, *at), str(at))
            assert_same_bits(here, there, f"x after {at}")
        assert backend.frame_count <= 3
    torch._dynamo.reset()


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
def test_writes(function):
    """A version for autograd, the tensor itself returned, and nothing differentiable touched."""
    x = torch.zeros(2, 100)
    version = x._version
    assert function(x, 0.5, 3, 0, "normal") is x
    assert x._version > version
    leaf = torch.nn.Parameter(torch.zeros(200))
    with torch.no_grad():
        function(leaf, 0.5, 3, 0, "normal")
    assert torch.equal(leaf.view(2, 100), x)
    for inside in (leaf, leaf * 1):
        before = inside.detach().clone()
        with pytest.raises(RuntimeError, match="not differentiable"):
            function(inside, 0.5, 3, 0, "normal")
        assert torch.equal(inside, before)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_fake_and_meta_tensors(distribution):
    for device, mode in (("cpu", FakeTensorMode()), ("meta", torch.no_grad())):
        with mode:
            x = torch.empty(3, 50, device=device)
            for function in FUNCTIONS.values():
                function(x, 0.5, 3, 128, distribution)
            made = zo.ops.probe(7, 3, dtype=torch.bfloat16, device=device, distribution=distribution)
            assert (made.shape, made.dtype, made.device.type) == ((7,), torch.bfloat16, device)
            with pytest.raises(ValueError, match="distribution must be"):
                zo.ops.apply_probe_(x, 0.5, 3, distribution="sparse-7")
            with pytest.raises(ValueError, match="offset must be"):
                zo.ops.apply_probe_(x, 0.5, 3, offset=5, distribution=distribution)
