"""Several processes are one: the same bits whatever their number, and none waits for one that fails."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distributed.replicas import fail, flip, on_ranks, other_seeds, sent_bytes, train
from zo_kernels.distributed import digest

ALONE: dict[tuple[str, str], bytes] = {}


@pytest.mark.parametrize(
    ("kind", "name", "world_size"),
    [
        ("population", "lstm", 2),
        ("population", "lstm", 3),
        ("population", "lstm", 4),
        ("population", "paper-dnc", 3),
        ("closure", "gru", 2),
        ("closure", "gru", 4),
        ("fd", "lstm", 2),
        ("1.5-spsa", "elman", 3),
        ("2-spsa", "lstm", 4),
        ("agreement", "lstm", 3),
    ],
)
def test_any_number_of_processes_gives_the_same_bits(kind: str, name: str, world_size: int) -> None:
    """Seven probes, of which none of these numbers is a divisor."""
    if (kind, name) not in ALONE:
        ALONE[kind, name] = train(0, kind, name, 4)
    assert on_ranks(world_size, train, kind, name, 4) == [ALONE[kind, name]] * world_size


def test_more_processes_than_probes() -> None:
    assert on_ranks(4, sent_bytes, 3) == [24] * 4  # one probe each at most, and whether it went well


@pytest.mark.parametrize(("world_size", "probes"), [(2, 512), (3, 512)])
def test_a_step_sends_sixteen_bytes_a_probe(world_size: int, probes: int) -> None:
    share = -(-probes // world_size)
    assert on_ranks(world_size, sent_bytes, probes) == [16 * share + 8] * world_size


def test_a_rank_that_fails_stops_the_others() -> None:
    replies = on_ranks(3, fail, 1)
    other = "ReplicaError: rank 1 failed to evaluate its probes: its own output says why"
    assert replies == [other, "KeyError: 'no batch'", other]


@pytest.mark.parametrize("bit", [4, 13, 31])
def test_a_flipped_bit_is_noticed_and_its_rank_named(bit: int) -> None:
    """(The lowest bits are below the grid here: the next update rounds them away.)"""
    for reply in on_ranks(3, flip, 2, bit):
        assert reply.startswith("100: rank 2 holds other parameters than the rest before step 100: build the model")


def test_models_of_other_seeds_are_refused() -> None:
    for reply in on_ranks(3, other_seeds):
        assert reply.startswith("ReplicaError: ranks 1, 2 hold other parameters than the rest before step 0")


@given(
    numbers=st.lists(st.floats(width=32), min_size=1, max_size=40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    at=st.integers(0, 10**6),
)
def test_any_single_flipped_bit_changes_the_digest(numbers: list[float], dtype: torch.dtype, at: int) -> None:
    x = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    data = x.clone().view(torch.uint8).numpy()
    bits = np.unpackbits(data)
    bits[at % len(bits)] ^= 1
    other = torch.from_numpy(np.packbits(bits)).view(dtype)
    assert digest(x) == digest(x.clone())
    assert digest(other) != digest(x)


def test_a_digest_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000)
    whole = digest(x)
    words = x.view(torch.int32).to(torch.int64).tolist()
    assert whole % 2**64 == sum((2 * j + 1) * w for j, w in enumerate(words)) % 2**64
    monkeypatch.setattr("zo_kernels.distributed._BLOCK", 7)
    assert digest(x) == whole
