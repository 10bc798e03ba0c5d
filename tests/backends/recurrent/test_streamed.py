"""The streamed forward in Triton's interpreter against its arithmetic in float64, and its plan.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process of its own: this file as a
program does the checks and prints what came of each. On a GPU: tests/gpu/test_models.py.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.backends.test_triton_parity import last_line
from tests.models.test_population_bfloat16 import EPS, bfloat16, emulated, on_grid
from tests.recurrent import SMALL, TOLERANCE, Shape, copies, make_batch, make_model, make_seeds, make_states, moved
from zo_kernels.backends import triton
from zo_kernels.backends.base import CELLS, RecurrentWeights
from zo_kernels.backends.recurrent import memory, reference, streamed, streamed_plan
from zo_kernels.backends.recurrent.streamed_plan import Sizes, tiles_for
from zo_kernels.models import IGNORE_INDEX, PRESETS, RecurrentLM

WIDE = Shape(70, 4, 1, 33, 66, 2)
"""An odd head of two tiles of units; a tile of sequences and one of words that are not full."""

CPU = torch.device("cpu")


def computed(
    model: RecurrentLM, batch: tuple[Tensor, Tensor], seeds: Tensor, states: tuple[Tensor, ...] = ()
) -> Tensor:
    return streamed.recurrent_nats(model._weights(), *batch, seeds.numpy(), EPS, states, None)


def assert_emulated(model: RecurrentLM, batch: tuple[Tensor, Tensor], carried: bool, most: float = 2e-5) -> None:
    """With a token table of float32, up to where a float32's last bit decides how a state is rounded."""
    seeds, size = make_seeds(2), len(batch[0])
    states = tuple(bfloat16(state) for state in make_states(model, 2, size)) if carried else ()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(streamed_plan, "TABLE_DTYPE", torch.float32)
        last = copies(states)
        nats = computed(model, batch, seeds, last)
    expected, expected_last = emulated(model, *batch, seeds, states or model.population_states(2, size))
    scored = int((batch[1] != IGNORE_INDEX).sum())
    torch.testing.assert_close(nats, expected, rtol=0, atol=most * scored)
    for state, wanted in zip(last, expected_last, strict=carried):
        assert ((state - wanted).abs() < TOLERANCE).double().mean() > 0.95
    if carried and model._weights().cell != "gru":
        assert torch.equal(bfloat16(last[0]), last[0])


def check_cell(cell: str) -> None:
    """With states and tables of one step, then from zeros with one table of all tokens."""
    batch = make_batch(SMALL)
    assert len(batch[0].unique()) > SMALL.batch
    assert_emulated(make_model(cell), batch, carried=True)
    batch = make_batch(WIDE)
    assert len(batch[0].unique()) <= WIDE.batch
    assert_emulated(make_model(cell, WIDE), batch, carried=False)


def check_two_tiles_of_sequences() -> None:
    shape = Shape(5, 3, 2, 17, 130, 2)
    assert_emulated(make_model("lstm", shape), make_batch(shape), carried=True)


def check_one_sequence_of_long_heads() -> None:
    shape = Shape(130, 3, 1, 65, 1, 2)  # two tiles of words, three steps of the product
    assert_emulated(make_model("lstm", shape), make_batch(shape), carried=False)


def check_16_bits() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert_emulated(make_model("lstm", dtype=dtype), make_batch(), carried=False)


def check_frozen() -> None:
    for frozen in (("recurrent_weight", "bias"), ("embedding", "output_weight")):
        model = make_model("lstm")
        for name in frozen:
            parameter = model.get_parameter(name).requires_grad_(False)
            parameter.copy_(bfloat16(parameter))
        assert_emulated(model, make_batch(), carried=True)


def check_members() -> None:
    """Bits, places and padding of the recurrent weights: the columns of a unit are in one thread's accumulators."""
    model, seed = make_model("lstm"), make_seeds(1)
    weights, sizes = model._weights(), Sizes.of(model._weights(), (9, 0))
    chunk = streamed._Chunk(sizes, weights, seed, EPS, 1)
    members = torch.zeros(2, sizes.heads, sizes.columns, sizes.tiles.padded, dtype=torch.bfloat16)
    chunk._write("recurrent_weight", members, (sizes.heads, sizes.dim, sizes.dim), gates=True)
    left = members.clone()
    model.recurrent_weight.copy_(on_grid(model.recurrent_weight.double()))
    for sign, member in ((1, 0), (-1, 1)):
        expected = moved(model, sign * EPS, int(seed)).recurrent_weight
        for gate in range(4):
            for unit in range(sizes.dim):
                row = 16 * (unit // 4) + 8 * (gate // 2) + 2 * (unit % 4) + gate % 2
                found = members[member, :, row, : sizes.dim].float()
                assert torch.equal(found, expected[gate, :, unit]), (sign, gate, unit)
                left[member, :, row, : sizes.dim] = 0
    assert not left.any()


def check_chunks_and_tiles() -> None:
    """Probes one by one, and logits a member and 128 sequences at a time, are no other result."""
    shape = Shape(5, 3, 2, 4, 130, 2)
    model, batch, seeds = make_model("lstm", shape), make_batch(shape), make_seeds(2)
    states = make_states(model, 2, shape.batch)
    whole = copies(states)
    expected = computed(model, batch, seeds, whole)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(memory, "CPU_BYTES", 1)
        monkeypatch.setattr(streamed, "LOGITS_BYTES", 1)
        torch.testing.assert_close(computed(model, batch, seeds, states), expected, rtol=0, atol=TOLERANCE)
    for state, wanted in zip(states, whole, strict=True):
        torch.testing.assert_close(state, wanted, rtol=0, atol=TOLERANCE)


def check_what_is_not_scored() -> None:
    """Steps after the last scored position are not computed, unless for the states."""
    model, (tokens, targets), seeds = make_model("gru"), make_batch(), make_seeds(1)
    assert torch.equal(computed(model, (tokens, targets.fill_(IGNORE_INDEX)), seeds), torch.zeros(1, 2).double())
    targets[:, 0] = 3
    states = model.population_states(1, len(tokens))
    expected = computed(model, (tokens, targets), seeds, states)
    assert torch.equal(computed(model, (tokens[:, :1], targets[:, :1]), seeds), expected)
    assert all(state.abs().max() > 0 for state in states)


def check_a_broken_weight_shows() -> None:
    for cell in CELLS:
        model = make_model(cell)
        model.recurrent_weight.view(-1)[0] = torch.nan
        states = make_states(model, 1, SMALL.batch)
        assert computed(model, make_batch(), make_seeds(1), states).isnan().all(), cell


def check_autocast() -> None:
    """It casts none of the factors."""
    model, batch, seeds = make_model("elman"), make_batch(), make_seeds(1)
    expected = computed(model, batch, seeds)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(computed(model, batch, seeds), expected)


def check_the_memory() -> None:
    """What a call allocates is what the plan says, for a table of all tokens and for one of a step."""
    for shape in (Shape(40, 30, 2, 40, 70, 1), Shape(400, 30, 2, 40, 70, 2)):
        model, batch, seeds = make_model("lstm", shape), make_batch(shape, ignored=0), make_seeds(1)
        distinct, weights = len(batch[0].unique()), model._weights()
        planned = Sizes.of(weights, (8, 0)).probe_bytes(shape.batch, distinct)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            computed(model, batch, seeds)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        there, peak = 0, 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            there += event.nbytes()
            peak = max(peak, there)
        logits = 2 * 4 * shape.batch * shape.vocab
        assert 0.9 * planned < peak < planned + 6 * logits + (16 << 10), (planned, peak, logits)


def check_differences_correlate() -> None:
    """L+ - L- at eps 2^-10 with that in float64; the token table is float16."""
    shape, eps = Shape(30, 16, 1, 48, 32, 8), 2.0**-10
    model, batch, seeds = make_model("lstm", shape), make_batch(shape, ignored=0), make_seeds(24)
    model.reset_parameters(torch.Generator().manual_seed(0))
    exact = make_model("lstm", shape, torch.float64)
    exact.load_state_dict(model.state_dict())
    nats = [
        streamed.recurrent_nats(model._weights(), *batch, seeds.numpy(), eps, (), None),
        reference.recurrent_nats(exact._weights(), *batch, seeds.numpy(), eps, ()),
    ]
    correlation = float(torch.corrcoef(torch.stack([x.diff(dim=1).flatten() for x in nats]))[0, 1])
    print(f"correlation {correlation}", file=sys.stderr)
    assert correlation >= 0.99


CHECKS: dict[str, Callable[[], None]] = {
    **{f"the cell {cell}": lambda cell=cell: check_cell(cell) for cell in CELLS},
    "two tiles of sequences": check_two_tiles_of_sequences,
    "one sequence of long heads": check_one_sequence_of_long_heads,
    "16-bit parameters": check_16_bits,
    "frozen parameters": check_frozen,
    "members": check_members,
    "chunks and tiles": check_chunks_and_tiles,
    "what is not scored": check_what_is_not_scored,
    "a broken weight shows": check_a_broken_weight_shows,
    "autocast": check_autocast,
    "the memory": check_the_memory,
}
SLOW = {"differences correlate with float64": check_differences_correlate}


@torch.no_grad()
def main(names: list[str]) -> None:
    """Prints, as JSON, what went wrong in each check."""
    found = {}
    for name in names:
        try:
            (CHECKS | SLOW)[name]()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    return json.loads(last_line(__file__, *CHECKS))


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[name], interpreted[name]


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.slow
def test_slowly_in_the_interpreter(name: str) -> None:
    said = json.loads(last_line(__file__, name))[name]
    assert not said, said


PAPER = {
    name: Sizes(
        "lstm",
        100,
        p.embed_dim,
        p.num_heads,
        p.hidden_size // p.num_heads,
        tiles_for(p.hidden_size // p.num_heads, (9, 0)),
    )
    for name, p in PRESETS.items()
    if name.startswith("paper-lstm")
}


@pytest.mark.parametrize(
    ("name", "most"), [("paper-lstm-10m", 4e9), ("paper-lstm-100m", 8e9), ("paper-lstm-1.1b", 39e9)]
)
def test_the_memory_of_the_papers_sizes(name: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 probes of 1024 sequences, with theta in float32 and what cross-entropy takes, on a GPU with 141 GB."""
    monkeypatch.setattr(memory, "usable_bytes", lambda device: 80 << 30)
    one = PAPER[name].probe_bytes(1024, 100)
    probes = streamed._probes_at_once(one, torch.device("cuda"))
    assert probes * one + 6 * streamed_plan.LOGITS_BYTES + 4 * PRESETS[name].parameters < most
    assert one < 2 << 30 or probes == 1
    assert PAPER[name].probe_bytes(1024, 10_000) < most  # tokens of a large vocabulary: a table for each step


def test_chunks_fit_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    one, cuda = PAPER["paper-lstm-10m"].probe_bytes(1024, 100), torch.device("cuda")
    for free in (0, one, 3 * one, 100 * one):
        monkeypatch.setattr(memory, "usable_bytes", lambda device, free=free: free)
        assert streamed._probes_at_once(one, cuda) == max(1, min(free, 2 << 30) // one)


def test_tiles() -> None:
    for capability in ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0)):
        for dim in (1, 16, 20, 50, 64, 65, 150, 300, 850, 1000):
            tiles = tiles_for(dim, capability)
            assert tiles.padded >= dim
            assert tiles.padded % tiles.units == tiles.padded % tiles.depth == 0
            assert tiles.padded - dim < 64
    assert tiles_for(850, (9, 0)).padded == 896
    assert tiles_for(150, (9, 0)).padded == 160
    assert tiles_for(850, (8, 0)).padded == 864


def weights_of(cell: str, shape: Shape = SMALL, dtype: torch.dtype = torch.float32) -> RecurrentWeights:
    return make_model(cell, shape, dtype)._weights()


def test_what_it_can_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = weights_of("lstm")
    assert streamed.refusal(fine, 3, CPU) == triton.TritonBackend().unavailable() or not torch.cuda.is_available()
    with pytest.raises(RuntimeError):
        streamed.recurrent_nats(fine, *make_batch(), make_seeds(1).numpy(), EPS, (), None)
    monkeypatch.setattr(triton.TritonBackend, "unavailable", lambda self: None)
    assert streamed.refusal(fine, 3, CPU) == "it computes on GPUs, not on cpu"
    monkeypatch.setattr(triton.TritonBackend, "device_types", ("cuda", "cpu"))
    for cell in CELLS:
        assert streamed.refusal(weights_of(cell), 3, CPU) is None
    assert "float64" in cast(str, streamed.refusal(weights_of("lstm", dtype=torch.float64), 3, CPU))
    for layers in ({"layers": 2}, {"norm": True}):
        assert "a single layer" in cast(str, streamed.refusal(weights_of("lstm", SMALL._replace(**layers)), 3, CPU))
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 or newer, not 7.5" in cast(str, streamed.refusal(fine, 3, cuda))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(memory, "total_bytes", lambda device: 10**9)
    assert streamed.refusal(fine, 3, cuda) is None
    assert streamed.refusal(fine, 10**7, cuda) == "one probe takes 10.2 GB, and the GPU has 1.0: use a smaller batch"


if __name__ == "__main__":
    main(sys.argv[1:])
