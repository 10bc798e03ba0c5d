"""The ops as torch sees them: schema, fake tensors, autograd's version counters, inference mode."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import zo_kernels as zo
from tests.cases import DISTRIBUTIONS, FEW_CASES, make_values
from tests.memory_models import make_memory_batch, make_memory_model
from tests.recurrent import make_batch, make_model, make_seeds, make_states

OPS = torch.ops.zo_kernels


def arguments(case, distribution="rademacher"):
    """Of each registered op: positional and keyword arguments."""
    x = make_values(case.numel, case.dtype).nan_to_num(0.5)  # opcheck takes a NaN for a difference
    out = torch.zeros(case.numel, dtype=torch.bfloat16)
    rows = torch.tensor([0.5, -0.25], dtype=torch.float64), torch.tensor([7, -1])
    at = {"offset": case.offset}
    drawn = {"distribution": distribution, **at}
    rounding = {"rounding_seed": 3} if case.dtype.itemsize == 2 else {}
    model, (tokens, targets) = make_model("lstm", dtype=case.dtype), make_batch()
    weights = [parameter.detach() for parameter in model.parameters()]
    offsets = [case.offset, case.offset + 128, -1, *(case.offset + 1024 * k for k in range(1, 4))]
    population_states = list(make_states(model, 2, len(tokens)))
    states = [state[0, 0].clone() for state in population_states]
    dnc = make_memory_model("dnc", case.dtype)._dnc_weights(perturbed=True)
    memory_batch, memory_states = make_memory_batch(), make_memory_model("dnc", case.dtype).population_states(2, 3)
    dnc_tensors = [parameter.detach() for parameter in dnc.tensors]
    return {
        "probe": ((case.numel, 7), {"dtype": case.dtype, "device": torch.device("cpu"), **drawn}),
        "apply_probe_": ((x, 0.5, 7), drawn),
        "apply_probe": ((x, 0.5, -7), {"dtype": torch.float16, **drawn}),
        "apply_probe_out": ((x, out, 0.5, 7), drawn),
        "apply_probes": ((x, out.new_zeros(2, 2, case.numel), rows[0][:1], rows[1]), at),
        "swap_probe_": ((x, -0.5, 7, 0.5, -8), at),
        "accumulate_probes_": (
            (x, *rows),
            {"decay": 0.5, "grid": 2.0**-10, "undo_alpha": 0.5, "undo_seed": -7, **rounding, **drawn},
        ),
        "recurrent_nats": (
            (weights, "lstm", offsets, tokens, targets, make_seeds(2), 0.25, population_states, "float32"),
            {},
        ),
        "recurrent_activity": (
            (weights, "lstm", tokens, targets, make_seeds(2), 0.25, states, 3, True, 5),
            {},
        ),
        "recurrent_logits": ((weights, "lstm", tokens, states), {}),
        "dnc_nats": (
            (dnc_tensors, "dnc", dnc.offsets, dnc.memory, *memory_batch, make_seeds(2), 0.25, list(memory_states)),
            {},
        ),
        "dnc_score": (
            (dnc_tensors, "dnc", dnc.memory, *memory_batch, [state[0, 0].clone() for state in memory_states]),
            {},
        ),
        "recurrent_score": ((weights, "lstm", tokens, targets, states), {}),
    }


WITH_DISTRIBUTION = ("probe", "apply_probe_", "apply_probe", "apply_probe_out", "accumulate_probes_")

DRAWN = {
    "apply_probe_": lambda x, **d: zo.ops.apply_probe_(x, 0.5, 3, **d),
    "apply_probe(out=)": lambda x, **d: zo.ops.apply_probe(torch.zeros(x.shape), 0.5, 3, out=x, **d),
    "accumulate_probes_": lambda x, **d: zo.ops.accumulate_probes_(x, [0.5], [3], undo_alpha=0.5, undo_seed=3, **d),
}
IN_PLACE = {
    **DRAWN,
    "swap_probe_": lambda x: zo.ops.swap_probe_(x, 0.5, 3, 0.25, 4),
    **{f"{name} normal": partial(op, distribution="normal") for name, op in DRAWN.items()},
}

each_in_place = pytest.mark.parametrize("op", IN_PLACE.values(), ids=IN_PLACE)
reads_x = {"apply_probe": lambda x: zo.ops.apply_probe(x, 0.5, 3), **IN_PLACE}


def test_every_op_is_here():
    registered = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    names = [name for namespace, name in registered if namespace == "zo_kernels"]
    assert sorted(names) == sorted(arguments(FEW_CASES[0]))
    not_registered = {"recurrent_forward"}  # which computes nothing
    assert sorted(zo.ops.__all__) == sorted({*names, *not_registered} - {"apply_probe_out"})


def test_which_ops_have_a_distribution():
    """The others are for Rademacher probes."""
    for name in arguments(FEW_CASES[0]):
        has_one = any(argument.name == "distribution" for argument in getattr(OPS, name).default._schema.arguments)
        assert has_one == (name in WITH_DISTRIBUTION)


OPCHECKS = [
    (case, name)
    for case in FEW_CASES
    for name in arguments(FEW_CASES[0])
    if not name.startswith("dnc") or case == FEW_CASES[0]  # two seconds each, for their many tensors
]


@pytest.mark.parametrize(("case", "name"), OPCHECKS, ids=str)
def test_opcheck(case, name):
    for distribution in ("rademacher", "normal", "sparse-4") if name in WITH_DISTRIBUTION else ("rademacher",):
        args, kwargs = arguments(case, distribution)[name]
        torch.library.opcheck(getattr(OPS, name), args, kwargs)


@each_in_place
def test_a_write_is_visible_to_autograd(op):
    """A version for autograd, and the tensor itself returned."""
    x = torch.zeros(200)
    part = x[:128]
    before = x._version
    assert op(part) is part
    assert x._version > before
    op(torch.zeros(0))  # and an empty tensor is no trouble


def test_reading_is_not_a_write():
    x = torch.zeros(200)
    zo.ops.apply_probe(x, 0.5, 3)
    zo.ops.apply_probe(x, 0.5, 3, out=torch.zeros(200))
    assert x._version == 0


@each_in_place
def test_backward_through_a_tensor_changed_meanwhile_raises(op):
    w = torch.ones(5, requires_grad=True)
    hidden = w * 2
    loss = (hidden * hidden).sum()  # saves hidden
    with torch.no_grad():
        op(hidden)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", reads_x)
def test_refuses_what_requires_a_gradient(name):
    op, argument = reads_x[name], "out" if "out" in name else "x"
    leaf = torch.nn.Parameter(torch.ones(5))
    for x in (leaf, leaf * 1):
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match=f"not differentiable, but {argument} requires a gradient: use"):
            op(x)
        assert torch.equal(x, before)
        with torch.no_grad():
            assert torch.equal(op(x), op(before))


@each_in_place
def test_inference_tensors_change_in_inference_mode_only(op):
    with torch.inference_mode():
        x = torch.ones(5)
        op(x)
    before = x.clone()
    with pytest.raises(RuntimeError, match="is an inference tensor, which must not change outside inference mode"):
        op(x)
    assert torch.equal(x, before)
    with pytest.raises(RuntimeError, match="out is an inference tensor"):
        zo.ops.apply_probe(torch.zeros(5), 0.5, 3, out=x)


def test_refuses_only_that():
    """Neither a tensor without gradient under grad mode, nor rows that require one."""
    assert not zo.ops.apply_probe(torch.zeros(5), 0.5, 3).requires_grad
    x = torch.zeros(5)
    zo.ops.accumulate_probes_(x, torch.ones(1, requires_grad=True), torch.tensor([3]))
    assert not x.requires_grad


@each_in_place
def test_inference_mode(op):
    expected = op(torch.zeros(300))
    outside = torch.zeros(300)
    with torch.inference_mode():
        inside = torch.zeros(300)
        assert inside.is_inference()
        assert torch.equal(op(inside), expected)
        assert torch.equal(op(outside), expected)
        assert torch.equal(zo.ops.apply_probe(inside, 0.0, 3), expected)
        assert torch.equal(zo.ops.probe(300, 3), zo.ops.probe(300, 3, device=inside.device))
    assert torch.equal(outside, expected)


def check_fake(device, **drawn):
    x = torch.empty(3, 50, dtype=torch.float16, device=device)
    rows = [0.5, 0.25], [1, 2]
    assert zo.ops.apply_probe_(x, 0.5, 3, **drawn) is x
    assert zo.ops.swap_probe_(x, 0.5, 3, 0.25, 4) is x
    assert zo.ops.accumulate_probes_(x, *rows, undo_alpha=0.5, undo_seed=3, **drawn) is x
    out = torch.empty(3, 50, dtype=torch.float64, device=device)
    assert zo.ops.apply_probe(x, 0.5, 3, out=out, **drawn) is out
    for bad in (
        lambda: zo.ops.apply_probe_(x.t(), 0.5, 3, **drawn),
        lambda: zo.ops.apply_probe_(x, 0.5, 3, offset=5, **drawn),
        lambda: zo.ops.apply_probe(x, 0.5, 3, out=out[:2], **drawn),
        lambda: zo.ops.accumulate_probes_(x, [0.5], [1, 2], **drawn),
        lambda: zo.ops.apply_probe_(x, 0.5, 3, distribution="sparse-7"),
    ):
        with pytest.raises(ValueError, match=r"contiguous|offset|shape|length|distribution must be"):
            bad()
    same = zo.ops.apply_probe(x, 0.5, 3, **drawn)
    wide = zo.ops.apply_probe(x, 0.5, 3, dtype=torch.float64, **drawn)
    assert (same.shape, same.dtype, same.device) == (x.shape, x.dtype, x.device)
    assert (wide.shape, wide.dtype, wide.device) == (x.shape, torch.float64, x.device)
    made = zo.ops.probe(150, 3, dtype=torch.bfloat16, device=device, **drawn)
    assert (made.shape, made.dtype, made.device.type) == ((150,), torch.bfloat16, device)


@pytest.mark.parametrize("distribution", ["rademacher", *DISTRIBUTIONS])
def test_fake_and_meta_tensors(distribution):
    check_fake("meta", distribution=distribution)
    with FakeTensorMode():
        check_fake("cpu", distribution=distribution)


def test_meta_rows_on_a_tensor_that_is_real():
    """Nothing could be computed, so it must not look as if it had been."""
    x = torch.zeros(5)
    meta = torch.ones(1, device="meta")
    with pytest.raises(ValueError, match="coeffs and seeds must be CPU tensors"):
        zo.ops.accumulate_probes_(x, meta, meta.long())


def test_parameters_and_views():
    """A Parameter, and a view of one buffer per tensor: what an arena makes."""
    buffer = torch.zeros(512)
    weight = torch.nn.Parameter(buffer[128:428].view(3, 100))
    with torch.no_grad():
        zo.ops.apply_probe_(weight, 1.0, 3, offset=128)
    assert torch.equal(buffer[128:428], zo.ops.probe(512, 3)[128:428])
    assert not buffer[:128].any()
    assert not buffer[428:].any()
