"""Several processes are one: the same bits whatever their number, and none waits for one that fails."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distributed.cells import expected_cells
from tests.distributed.replicas import (
    be_late,
    build_other_models,
    change_one_by_activities,
    count_balanced_rows,
    count_sent_bytes,
    fail_in_activities,
    fail_on_one,
    flip_bit,
    get_out_of_step,
    interrupt_one,
    record_cells,
    return_too_few_losses,
    run_on_ranks,
    train,
    train_by_activities,
)
from zo_kernels.distributed.partition import split_by_speed, split_evenly
from zo_kernels.distributed.replicas import _HEADER, Replicas, digest
from zo_kernels.errors import ReplicaError
from zo_kernels.optim.shared import rectangles

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
        ("streamed", "gru", 3),
        ("fd", "lstm", 2),
        ("1.5-spsa", "elman", 3),
        ("2-spsa", "lstm", 4),
        ("agreement", "lstm", 3),
        ("batch", "lstm", 2),
        ("batch", "gru", 4),
        ("both", "lstm", 3),
    ],
)
def test_any_number_of_processes_gives_the_same_bits(kind: str, name: str, world_size: int) -> None:
    """Seven probes, of which none of these numbers is a divisor; three micro-batches where they are shared out."""
    if (kind, name) not in ALONE:
        ALONE[kind, name] = train(0, kind, name, 4)
    assert run_on_ranks(world_size, train, kind, name, 4) == [ALONE[kind, name]] * world_size


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"credit_length": 2, "local_gradient": True}),
        (torch.bfloat16, {}),
        (torch.float64, {}),
    ],
)
def test_activities_on_any_number_of_processes_give_the_same_bits(dtype: torch.dtype, options: dict[str, int]) -> None:
    """Four micro-batches: with three processes the shares differ, with five one process has none."""
    alone = train_by_activities(0, dtype, options)
    assert alone[0][-1] < alone[0][0]
    for world_size in (2, 3, 5):
        assert run_on_ranks(world_size, train_by_activities, dtype, options) == [alone] * world_size


def test_activities_of_one_micro_batch_can_not_be_shared() -> None:
    for reply in run_on_ranks(2, train_by_activities, torch.float32, {}, None):
        assert reply.startswith("ValueError: replicas share the micro-batches of a batch, and this has one")


def test_a_rank_whose_activities_fail_stops_the_others() -> None:
    other = "ReplicaError: rank 1 failed to evaluate its share: see its output"
    assert run_on_ranks(3, fail_in_activities, 1, KeyError) == [other, "KeyError: 'no batch'", other]
    other = "ReplicaStoppedError: rank 0 was interrupted"
    assert run_on_ranks(2, fail_in_activities, 0, KeyboardInterrupt) == ["KeyboardInterrupt: no batch", other]


def test_other_parameters_are_noticed_before_activities_are_perturbed() -> None:
    for reply in run_on_ranks(3, change_one_by_activities, 2):
        assert reply.startswith("ReplicasDifferError: rank 2 holds other parameters than the rest before step 0")


@pytest.mark.parametrize("split", ["probes", "batch", "both"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_evaluates_its_share_of_the_cells(split: str, world_size: int) -> None:
    """Five probes on three micro-batches: none of these numbers divides the cells evenly for all splits."""
    found = run_on_ranks(world_size, record_cells, split, 5, 2)
    expected = expected_cells(split, world_size, 5, 3)
    for step in (0, 1):
        cells = [rank[step] for rank in found]
        assert [set(mine) for mine in cells] == expected
        assert sum(map(len, cells)) == 15  # none twice


def test_more_processes_than_probes() -> None:
    assert run_on_ranks(4, count_sent_bytes, 3) == [3 * (24 + 16)] * 4  # one probe each at most


@pytest.mark.parametrize(("world_size", "probes"), [(2, 512), (3, 512)])
def test_a_step_sends_sixteen_bytes_a_probe_to_each(world_size: int, probes: int) -> None:
    share = -(-probes // world_size)
    assert run_on_ranks(world_size, count_sent_bytes, probes) == [(world_size - 1) * (24 + 16 * share)] * world_size


def test_a_rank_that_fails_stops_the_others() -> None:
    replies = run_on_ranks(3, fail_on_one, 1)
    other = "ReplicaError: rank 1 failed to evaluate its share: see its output"
    assert replies == [other, "KeyError: 'no batch'", other]


def test_an_interrupt_of_one_rank_stops_the_others() -> None:
    other = "ReplicaStoppedError: rank 0 was interrupted"
    assert run_on_ranks(3, interrupt_one, 0) == ["KeyboardInterrupt: ", other, other]


def test_losses_of_another_number_are_an_error() -> None:
    for reply in run_on_ranks(2, return_too_few_losses):
        assert "expected losses of shape (3, 2), not (1, 2)" in reply


def test_ranks_at_different_steps_are_an_error() -> None:
    for reply in run_on_ranks(3, get_out_of_step):
        assert reply.startswith("ReplicaError: the ranks are at different steps, [1, 2, 1]")


def test_a_slow_rank_gets_a_smaller_share() -> None:
    counts = run_on_ranks(3, count_balanced_rows, 8)
    assert sorted(c[0] for c in counts) == [13, 13, 14]
    assert all(sum(c) == 40 for c in zip(*counts, strict=True))
    assert counts[1][-1] <= 10
    assert min(counts[0][-1], counts[2][-1]) > 13


@given(count=st.integers(0, 10**6), speeds=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=64))
def test_shares_are_contiguous_and_by_speed(count: int, speeds: list[float]) -> None:
    for shares in (split_evenly(count, len(speeds)), split_by_speed(count, speeds)):
        assert [share.start for share in shares] == [0, *(share.stop for share in shares[:-1])]
        assert shares[-1].stop == count
        assert all(share.stop > share.start for share in shares) or count < len(speeds)
    sizes = [share.stop - share.start for share in split_evenly(count, len(speeds))]
    assert max(sizes) - min(sizes) <= 1
    if count >= len(speeds):
        for share, speed in zip(split_by_speed(count, speeds), speeds, strict=True):
            ideal = 1 + (count - len(speeds)) * speed / sum(speeds)
            assert abs(share.stop - share.start - ideal) <= 1 + 1e-6 * count


@given(width=st.integers(1, 9), start=st.integers(0, 60), length=st.integers(0, 60))
def test_cells_are_walked_in_rectangles(width: int, start: int, length: int) -> None:
    cells = [
        row * width + column
        for rows, columns in rectangles(slice(start, start + length), width)
        for row in range(rows.start, rows.stop)
        for column in range(columns.start, columns.stop)
    ]
    assert cells == list(range(start, start + length))
    assert len(list(rectangles(slice(start, start + length), width))) <= 3


@pytest.mark.parametrize("bit", [4, 13, 31])
def test_a_flipped_bit_is_noticed_and_its_rank_named(bit: int) -> None:
    """(The lowest bits are below the grid here: the next update rounds them away.)"""
    for reply in run_on_ranks(3, flip_bit, 2, bit):
        assert reply.startswith("100: rank 2 holds other parameters than the rest before step 100: build the model")


def test_models_of_other_seeds_are_refused() -> None:
    for reply in run_on_ranks(3, build_other_models):
        assert reply.startswith("ReplicasDifferError: ranks 0, 1, 2 do not all hold the same parameters before step 0")


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
    monkeypatch.setattr("zo_kernels.distributed.replicas._BLOCK", 7)
    assert digest(x) == whole


def test_the_first_step_may_take_longer() -> None:
    assert run_on_ranks(2, be_late, 0) == ["nothing was noticed"] * 2
    said, _ = run_on_ranks(2, be_late, 1)
    assert "no answer from" in said
    with pytest.raises(ValueError, match="start_timeout must be positive and finite, not 0"):
        Replicas(start_timeout=0)


@pytest.mark.parametrize(("field", "value"), [("seconds", np.nan), ("seconds", np.inf), ("seconds", -1), ("status", 9)])
def test_an_answer_that_can_not_be_is_refused(field: str, value: float) -> None:
    headers = np.zeros(2, _HEADER)
    headers[field][1] = value
    with pytest.raises(ReplicaError, match="what rank 1 sent is no answer"):
        Replicas._raise_failure(mock.Mock(), headers)
