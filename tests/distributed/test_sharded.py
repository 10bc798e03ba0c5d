"""A model of which each process holds a part is trained to the bits of one that is whole."""

import pytest

from tests.distributed.replicas import run_on_ranks
from tests.distributed.sharded import (
    KINDS,
    collect_refusals,
    count_closure_calls,
    count_searches,
    find_bad_values,
    interrupt_closure,
    load_old_shards,
    load_other_shards,
    measure_largest_temporary,
    resume_and_replay,
    step_too_far,
    train_all,
    train_on_parts,
)

WHOLE: dict[str, bytes] = {}


@pytest.mark.parametrize(
    ("layout", "world_size"),
    [
        ("fsdp", 2),
        ("mixed", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("fsdp", 1), ("fsdp", 3), ("fsdp resharded", 2), ("dtensor", 3), ("hsdp", 4)]
        ),
    ],
)
def test_a_sharded_model_is_trained_to_the_bits_of_the_whole_one(layout: str, world_size: int) -> None:
    if not WHOLE:
        WHOLE.update(*run_on_ranks(1, train_all, "plain"))
    for found in run_on_ranks(world_size, train_all, layout):
        assert [kind for kind in KINDS if found[kind] != WHOLE[kind]] == []


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_loss_is_the_mean_of_the_ranks_own(world_size: int) -> None:
    alone = run_on_ranks(1, train_on_parts, "plain", world_size)
    assert run_on_ranks(world_size, train_on_parts, "fsdp", world_size) == alone * world_size


def test_replicas_of_a_mesh_share_the_probes() -> None:
    """Ranks 0 and 1 hold one copy, 2 and 3 the other."""
    assert run_on_ranks(4, count_closure_calls) == [4, 4, 2, 2]


@pytest.mark.parametrize("kind", ["in place", "adam", "momentum, shadow"])
def test_a_run_goes_on_from_its_state_and_its_rows(kind: str) -> None:
    assert run_on_ranks(3, resume_and_replay, kind) == [[True, True]] * 3


def test_state_is_sharded_as_the_parameters_are() -> None:
    assert run_on_ranks(2, load_other_shards) == [True] * 2


def test_old_state_of_other_shards_is_refused() -> None:
    for reply in run_on_ranks(2, load_old_shards):
        assert "saved with the parameters sharded otherwise" in reply


def test_a_value_that_is_not_finite_on_one_rank_is_named_on_all() -> None:
    values = [float("nan"), float("inf"), float("-inf")]
    said = ["parameter hidden.weight holds a NaN or infinite value"] * len(values)
    assert run_on_ranks(3, find_bad_values, values) == [said] * 3


def test_leaving_the_grid_is_an_error_on_all_ranks_or_none() -> None:
    replies = run_on_ranks(3, step_too_far)
    assert replies[0].startswith("parameter ")
    assert "may leave the range" in replies[0]
    assert replies == [replies[0]] * 3


def test_a_closure_that_raises_leaves_theta_as_it_was() -> None:
    assert run_on_ranks(2, interrupt_closure, "after") == [["'broken'", ""]] * 2


def test_a_forward_pass_that_raised_is_not_built_upon() -> None:
    for first, then in run_on_ranks(2, interrupt_closure, "in"):
        assert first == "'broken'"
        assert then.startswith("FSDP holds unsharded parameters")


def test_no_second_copy_in_place() -> None:
    for temporary, shard in run_on_ranks(2, measure_largest_temporary):
        assert temporary <= 128 < shard


def test_objects_are_searched_only_where_there_may_be_fsdp_modules() -> None:
    assert run_on_ranks(1, count_searches) == [[0, 1]]


REFUSED = {
    "columns": "parameter head.weight is placed as S",
    "partial": "parameter head.weight is placed as P",
    "uneven": "parameter head.weight is not sharded as torch.chunk splits it",
    "gathered": "is what FSDP gathered for a forward pass: call reshard",
    "population": "a population reads whole parameters, but these are sharded: pass a closure",
    "replicas": "replicas of sharded parameters follow from their mesh",
    "adapter": "FSDP shards the module of parameter scale, but no trainable parameter",
    "shared": "parameters a and b overlap in memory",
    "direct": "is what FSDP gathered for a forward pass",
    "frozen": "there is nothing to train",
}


def test_refusals() -> None:
    for said in run_on_ranks(2, collect_refusals, list(REFUSED)):
        for message, error in zip(REFUSED.values(), said, strict=True):
            assert message in error
