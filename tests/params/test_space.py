"""The flat parameter space: numbers of parameters that stay in their own storage."""

import gc
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zo_kernels as zo
from zo_kernels.backends.pieces import Pieces
from zo_kernels.ops.lists import apply_probe_list
from zo_kernels.params import ParameterSpace, flat_offsets

shapes = st.lists(st.lists(st.integers(0, 20), max_size=3).map(tuple), min_size=1, max_size=8)


@given(shapes)
def test_numbers_and_memory(shapes):
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    addresses = [p.data_ptr() for p in params]
    space = ParameterSpace.of(params)
    end = 0
    for slot, p in zip(space.slots, params, strict=True):
        assert slot.offset % 128 == 0
        assert end <= slot.offset < end + 128
        assert (slot.numel, slot.shape) == (p.numel(), p.shape)
        assert space.slot_of(p) is slot
        end = slot.offset + slot.numel
    assert space.num_parameters == sum(p.numel() for p in params)
    assert [p.data_ptr() for p in params] == addresses
    assert {space.memory(slot).data_ptr() for slot in space.slots} == set(addresses)


def add_probe(x: Pieces) -> None:
    apply_probe_list(x, x, 0.5, 7, "rademacher")


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.float64]))
def test_a_kernel_sees_each_parameter_at_its_numbers(sizes, dtype):
    params = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n in sizes]
    space = ParameterSpace.of(params)
    (batch,) = space.batches(space.trained)
    batch.run(add_probe)
    for slot, p in zip(space.slots, params, strict=True):
        assert torch.equal(p.detach(), 0.5 * zo.ops.probe(slot.numel, 7, offset=slot.offset, dtype=dtype))


@pytest.mark.parametrize("row", [0, 3, 9])
@pytest.mark.parametrize("width", [5, 128, 200])
def test_a_padding_row_is_left_out(row: int, width: int) -> None:
    weight, state = nn.Parameter(torch.ones(10, width)), torch.zeros(10, width)
    space = ParameterSpace([[("weight", weight)]], {weight: row})
    (batch,), (slot,) = space.batches(space.trained), space.slots
    batch.run(add_probe)
    batch.run_on(add_probe, {slot: state})
    expected = 0.5 * zo.ops.probe(10 * width, 7).view(10, width)
    expected[row] = 0
    assert torch.equal(state, expected)
    assert torch.equal(weight.detach(), 1 + expected)


def test_numbers_are_row_major_whatever_the_strides():
    plain = torch.randn(4, 6, 5, 3)
    for p in (plain.to(memory_format=torch.channels_last), plain.transpose(0, 3).contiguous().transpose(0, 3)):
        parameter = nn.Parameter(p)
        strides, space = parameter.stride(), ParameterSpace.of([parameter])
        assert not parameter.is_contiguous()
        space.batches(space.trained)[0].run(add_probe)
        assert parameter.stride() == strides
        assert torch.equal(parameter.detach(), zo.ops.apply_probe(plain, 0.5, 7))


def test_several_dtypes_make_several_batches():
    params = [nn.Parameter(torch.zeros(200, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float32)]
    space = ParameterSpace.of(params)
    batches = space.batches(space.trained)
    assert [len(batch.members) for batch in batches] == [2, 1]
    for batch in batches:
        batch.run(add_probe)
    for slot, p in zip(space.slots, params, strict=True):
        assert torch.equal(p.detach(), 0.5 * zo.ops.probe(200, 7, offset=slot.offset, dtype=p.dtype))


def test_memory_that_moved_is_looked_up_again():
    parameter = nn.Parameter(torch.zeros(200))
    space = ParameterSpace.of([parameter])
    (batch,) = space.batches(space.trained)
    batch.run(add_probe)
    before = parameter.data
    parameter.data = torch.zeros(200)
    batch.run(add_probe)
    assert torch.equal(parameter.data, before)
    batch.release()
    space.note_versions(written=False)
    parameter.data = parameter.data.clone()
    assert space.refresh() == ({space.slots[0]}, False)


def test_order_is_that_of_named_parameters():
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    space = ParameterSpace.of(model)
    assert [slot.name for slot in space.slots] == [name for name, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(space.parameters, model.parameters(), strict=True))


def test_frozen_parameters_are_numbered_last_and_left_out():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    space = ParameterSpace.of(model)
    assert [(slot.name, slot.offset) for slot in space.slots] == [
        ("0.bias", 0),
        ("1.weight", 128),
        ("1.bias", 256),
        ("0.weight", 384),
    ]
    assert [slot.name for slot in space.trained] == ["0.bias", "1.weight", "1.bias"]
    space.refresh()
    space.note_versions(written=False)
    model[0].weight.requires_grad_(True)
    model[1].requires_grad_(False)
    changed, is_other = space.refresh()
    assert is_other
    assert [slot.name for slot in changed] == ["0.weight"]
    assert [slot.name for slot in space.trained] == ["0.bias", "0.weight"]
    assert flat_offsets(model) == {model[0].bias: 0, model[0].weight: 384}


def test_tied_parameters_share_a_slot():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 5), "output": nn.Linear(5, 7, bias=False)})
    model["output"].weight = model["embedding"].weight
    assert ParameterSpace.of(model).num_parameters == 35
    memory = torch.randn(4, 6)
    a, b = nn.Parameter(memory), nn.Parameter(memory)
    space = ParameterSpace.of([a, b])
    assert space.num_parameters == 24
    assert space.slot_of(a) is space.slot_of(b)


def test_parameters_that_overlap_partly_are_refused():
    memory = torch.randn(10)
    with pytest.raises(ValueError, match=r"left and right overlap in memory"):
        ParameterSpace.of([("left", nn.Parameter(memory[:6])), ("right", nn.Parameter(memory[5:]))])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "nothing to train"),
        ([nn.Parameter(torch.zeros(3), requires_grad=False)], ValueError, "nothing to train"),
        ([nn.Parameter(torch.zeros(3, dtype=torch.complex64))], TypeError, "complex64"),
        ([nn.Parameter(torch.zeros(3, device="meta"))], ValueError, "parameter 0 is on the meta device"),
        ([nn.Parameter(torch.eye(3).to_sparse())], TypeError, "layout torch.sparse_coo, not plain numbers in memory"),
    ],
)
def test_refusals(params, error, message):
    with pytest.raises(error, match=message):
        ParameterSpace.of(params)


def test_a_parameter_of_another_space_is_unknown():
    space = ParameterSpace.of(nn.Linear(3, 5))
    with pytest.raises(KeyError):
        space.slot_of(nn.Parameter(torch.zeros(3)))


@given(shapes)
def test_offsets_without_a_space_are_those_it_would_give(shapes):
    module = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    before = flat_offsets(module)
    space = ParameterSpace.of(module)
    assert list(before.values()) == [space.slot_of(p).offset for p in module]
    assert flat_offsets(module) == before


def test_offsets_in_a_space_are_its_own():
    first, second = nn.Linear(3, 5), nn.Linear(7, 2)
    frozen = nn.Linear(4, 4).requires_grad_(False)
    assert flat_offsets(second) == {second.weight: 0, second.bias: 128}
    space = ParameterSpace.of([*first.parameters(), second.bias])
    assert flat_offsets(first) == {first.weight: 0, first.bias: 128}
    assert flat_offsets(second) == {second.bias: 256}  # the space does not have the other
    everything = nn.ModuleList([second, frozen, first])
    assert flat_offsets(everything) == {p: space.slot_of(p).offset for p in space.parameters}
    assert flat_offsets(frozen) == {}


def test_offsets_in_several_spaces():
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    spaces = [ParameterSpace.of(part) for part in module]
    with pytest.raises(ValueError, match="belong to several optimizers: use one optimizer for all of them"):
        flat_offsets(module)
    with spaces[1].numbering():
        assert flat_offsets(module) == {module[1].weight: 0, module[1].bias: 128}
    del spaces[1]
    gc.collect()
    assert flat_offsets(module) == {module[0].weight: 0, module[0].bias: 128}


def test_state_is_measured_like_parameters():
    params = [nn.Parameter(torch.full((n,), float(n))) for n in (130, 5, 128)]
    space = ParameterSpace.of(params)
    state = {slot: torch.full((slot.numel,), -2.0 * slot.numel) for slot in space.slots}
    assert space.magnitudes(space.slots) == [130.0, 5.0, 128.0]
    assert space.magnitudes(space.slots[1:], state) == [10.0, 256.0]
    assert space.count_below(space.slots[1], 5.0) == 0
    assert space.count_below(space.slots[1], 5.1) == 5


def test_what_defines_dtensors_is_not_imported():
    """It takes half as long as torch itself."""
    code = """
import sys, torch, zo_kernels as zo
zo.params.ParameterSpace.of([torch.nn.Parameter(torch.zeros(3))])
assert 'torch.distributed.tensor' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
