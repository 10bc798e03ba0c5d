import gc
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zo_kernels as zo
from zo_kernels.params.arena import flat_offsets
from zo_kernels.params.layout import Segment

shapes = st.lists(st.lists(st.integers(0, 20), max_size=3).map(tuple), min_size=1, max_size=8)


@given(shapes)
def test_layout_and_values(shapes):
    values = [torch.randn(shape) for shape in shapes]
    params = [nn.Parameter(v.clone()) for v in values]
    arena = zo.params.ParameterArena(params)
    end = 0
    for slot, p, value in zip(arena.slots, params, values, strict=True):
        assert slot.offset % 128 == 0
        assert end <= slot.offset < end + 128
        assert (slot.numel, slot.shape) == (p.numel(), p.shape)
        assert torch.equal(p, value)
        assert arena.slot_of(p) is slot
        end = slot.offset + slot.numel
    assert len(arena) % 128 == 0
    assert arena.num_parameters == sum(v.numel() for v in values)
    with torch.no_grad():
        arena.flat.fill_(7.0)
        assert all((p == 7.0).all() for p in params)
        arena.clear_padding()
    assert float(arena.flat.sum()) == 7.0 * arena.num_parameters
    arena.check()


def test_module_order_is_that_of_named_parameters():
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    arena = zo.params.ParameterArena(model)
    assert [slot.name for slot in arena.slots] == [name for name, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(arena.parameters, model.parameters(), strict=True))


def test_frozen_parameters_stay_where_they_are():
    model = nn.Linear(3, 5)
    model.weight.requires_grad_(False)
    address = model.weight.data_ptr()
    arena = zo.params.ParameterArena(model)
    assert [slot.name for slot in arena.slots] == ["bias"]
    assert model.weight.data_ptr() == address


def test_tied_modules_share_a_slot():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 5), "output": nn.Linear(5, 7, bias=False)})
    model["output"].weight = model["embedding"].weight
    arena = zo.params.ParameterArena(model)
    assert arena.num_parameters == 35
    assert model["output"].weight.data_ptr() == model["embedding"].weight.data_ptr() == arena.flat.data_ptr()


def test_parameters_over_the_same_memory_stay_tied():
    memory = torch.randn(4, 6)
    a, b = nn.Parameter(memory), nn.Parameter(memory)
    arena = zo.params.ParameterArena([a, b])
    assert arena.num_parameters == 24
    with torch.no_grad():
        a.add_(1.0)
    assert torch.equal(a, b)


def test_parameters_that_overlap_partly_are_refused():
    memory = torch.randn(10)
    with pytest.raises(ValueError, match=r"left and right overlap in memory"):
        zo.params.ParameterArena([("left", nn.Parameter(memory[:6])), ("right", nn.Parameter(memory[5:]))])


def test_transposed_parameters_keep_their_values():
    value = torch.randn(4, 6).t()
    p = nn.Parameter(value.clone(memory_format=torch.preserve_format))
    assert not p.is_contiguous()
    zo.params.ParameterArena([p])
    assert torch.equal(p, value)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "nothing to train"),
        ([nn.Parameter(torch.zeros(3), requires_grad=False)], ValueError, "nothing to train"),
        ([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3).half())], ValueError, "share one dtype and device"),
        ([nn.Parameter(torch.zeros(3, dtype=torch.complex64))], TypeError, "complex64"),
    ],
)
def test_refusals(params, error, message):
    with pytest.raises(error, match=message):
        zo.params.ParameterArena(params)


def test_a_parameter_that_moved_is_noticed():
    model = nn.Linear(3, 5)
    arena = zo.params.ParameterArena(model)
    model.weight.data = model.weight.data.clone()
    with pytest.raises(RuntimeError, match="parameter weight has moved"):
        arena.check()


def test_a_parameter_of_another_arena_is_unknown():
    arena = zo.params.ParameterArena(nn.Linear(3, 5))
    with pytest.raises(KeyError):
        arena.slot_of(nn.Parameter(torch.zeros(3)))


@given(shapes)
def test_offsets_without_an_arena_are_those_it_would_give(shapes):
    module = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    before = flat_offsets(module)
    arena = zo.params.ParameterArena(module)
    assert list(before.values()) == [arena.slot_of(p).offset for p in module]
    assert all(flat_offsets(module)[p] == before[p] for p in module if p.numel())


def test_offsets_in_an_arena_are_its_own():
    first, second = nn.Linear(3, 5), nn.Linear(7, 2)
    frozen = nn.Linear(4, 4).requires_grad_(False)
    alone = flat_offsets(second)
    assert alone == {second.weight: 0, second.bias: 128}
    arena = zo.params.ParameterArena([*first.parameters(), second.bias])
    assert flat_offsets(first) == {first.weight: 0, first.bias: 128}
    assert flat_offsets(second) == {second.bias: 256}  # the arena does not have the other
    assert flat_offsets(nn.ModuleList([second, frozen, first])) == {
        p: arena.slot_of(p).offset for p in arena.parameters
    }
    assert flat_offsets(frozen) == {}


def test_offsets_of_parameters_over_the_same_memory():
    memory, module = torch.randn(4, 6), nn.Module()
    module.a, module.b, module.c = (nn.Parameter(x) for x in (memory, memory, torch.zeros(3)))
    for arena in (None, zo.params.ParameterArena(module)):
        assert flat_offsets(module) == {module.a: 0, module.b: 0, module.c: 128}, arena


def test_offsets_in_several_arenas():
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    arenas = [zo.params.ParameterArena(part) for part in module]
    with pytest.raises(ValueError, match="belong to several optimizers: use one optimizer for all of them"):
        flat_offsets(module)
    assert [list(flat_offsets(part).values()) for part in module] == [[0, 128], [0, 128]]
    del arenas[1]
    gc.collect()
    assert flat_offsets(module) == {module[0].weight: 0, module[0].bias: 128}


def test_offsets_once_parameters_have_moved_out_of_their_arena():
    module = nn.Linear(3, 5)
    arena = zo.params.ParameterArena([module.bias, module.weight])
    assert arena.offsets_of(module.parameters()) == {module.bias: 0, module.weight: 128}
    assert flat_offsets(module) == {module.bias: 0, module.weight: 128}
    module.double()
    assert arena.offsets_of(module.parameters()) == {}
    assert flat_offsets(module) == {module.weight: 0, module.bias: 128}
    again = zo.params.ParameterArena(module)
    assert arena.offsets_of(module.parameters()) == {}
    assert again.offsets_of(module.parameters()) == {module.weight: 0, module.bias: 128}
    assert again.offsets_of([nn.Parameter(again.flat[:15].view(5, 3))]) == {}  # the memory, but not the parameter


def test_a_kernel_gets_each_segment_in_one_piece_with_its_part_of_state():
    params = [nn.Parameter(torch.full((n,), float(n))) for n in (130, 5, 128)]
    arena, pieces = zo.params.ParameterArena(params), []
    state = torch.arange(float(len(arena)))
    first, rest = Segment(0, 256, [arena.slots[0]]), Segment(256, 512, list(arena.slots[1:]))
    for segment in (first, rest):
        arena.each(segment, lambda *x, offset: pieces.append((*x, offset)), state)
        arena.each_of(state, segment, lambda x, offset: x.neg_())
    assert [(len(x), int(at[0]), offset) for x, at, offset in pieces] == [(256, 0, 0), (256, -256, 256)]
    assert torch.equal(torch.cat([x for x, *_ in pieces]), arena.flat)
    assert float(state.sum()) == -sum(range(512))
    assert arena.magnitudes(arena.slots) == [130.0, 5.0, 128.0]
    assert arena.magnitudes(arena.slots[1:], state) == [260.0, 511.0]
    assert arena.largest(first, state) == 255.0


def test_state_takes_and_gives_parameters():
    p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16))
    arena = zo.params.ParameterArena([p])
    theta = arena.zeros(torch.float32)
    theta[:3] = torch.tensor([1.001, 2.5, 3.0])
    with torch.no_grad():
        arena.take(arena.slots[0], theta)
        assert theta[:3].tolist() == [1.0, 2.0, 3.0]
        theta[0] = 1.001  # whose cast is the parameter
        arena.take(arena.slots[0], theta)
        assert float(theta[0]) == pytest.approx(1.001, rel=1e-6)
        before = arena.versions()
        p[0] = 7.0
        assert arena.versions() != before
        arena.write(theta)
    assert p.tolist() == [1.0, 2.0, 3.0]


def test_what_defines_dtensors_is_not_imported():
    """It takes half as long as torch itself."""
    code = """
import sys, torch, zo_kernels as zo
zo.params.ParameterArena([torch.nn.Parameter(torch.zeros(3))])
assert 'torch.distributed.tensor' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
