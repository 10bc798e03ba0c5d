"""Ranks that were started otherwise are named, and so is what differs."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch.distributed import HashStore

from zo_kernels.distributed.agreement import agree, describe_differences, take_own_gpus
from zo_kernels.distributed.signed_store import SignedStore
from zo_kernels.errors import ProcessGroupError, UsageError


def agree_on(terms: list[Any], timeout: float = 20.0, compare: Callable[..., None] = agree) -> list[str]:
    """What each rank says; "" where it goes on, None where it does not come."""
    bare, said = HashStore(), {}

    def take_part(rank: int) -> None:
        try:
            compare(SignedStore(bare, b"secret", "the store"), rank, len(terms), terms[rank], timeout)
            said[rank] = ""
        except (UsageError, ProcessGroupError) as error:
            said[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(terms))]
    for rank, thread in enumerate(threads):
        if terms[rank] is not None:
            thread.start()
    for rank, thread in enumerate(threads):
        if terms[rank] is not None:
            thread.join()
    return [said.get(rank, "") for rank in range(len(terms))]


def test_all_go_on_or_all_say_the_same() -> None:
    same = {"--lr": "0.1", "--seed": "0"}
    assert agree_on([same] * 3) == [""] * 3
    assert (
        agree_on([same, {**same, "--lr": "0.2"}, same])
        == ["UsageError: the processes must be started alike, but --lr is 0.1 on ranks 0, 2 and 0.2 on rank 1"] * 3
    )


def test_a_rank_that_says_nothing() -> None:
    said = agree_on([{"--lr": "0.1"}, None, {"--lr": "0.1"}], timeout=0.5)
    assert all("could not compare their flags in 0.5 s" in said[rank] for rank in (0, 2))


def test_each_rank_has_a_gpu_of_its_own() -> None:
    """Before NCCL is asked, which would hang or fail with pages of text."""
    assert agree_on(["GPU-a", "GPU-b", "GPU-c"], compare=take_own_gpus) == [""] * 3
    start = "UsageError: NCCL needs a GPU for each process, but ranks"
    end = "start one for each GPU, or all on the CPU, where the group is gloo's"
    assert (
        agree_on(["GPU-a", "GPU-b", "GPU-a"], compare=take_own_gpus) == [f"{start} 0, 2 share the GPU GPU-a: {end}"] * 3
    )
    lacks = f"{start.removesuffix('s')} 1 finds no GPU of the number LOCAL_RANK: {end}"
    assert agree_on(["GPU-a", ""], compare=take_own_gpus) == [lacks] * 2
    assert agree_on([""], compare=take_own_gpus) == [lacks.replace("rank 1", "rank 0")]


def test_many_differences_are_counted() -> None:
    a, b = ({f"--{i}": value for i in range(7)} for value in "ab")
    sentence = describe_differences([a, b])
    assert sentence.endswith("--3 is a on rank 0 and b on rank 1; 3 more differ")
    assert describe_differences([a, {}]).count("unknown on rank 1") == 4


@pytest.mark.parametrize("sent", ["[]", '{"--lr": 3}', "{", "[" * 100_000])
def test_something_else_than_terms(sent: str) -> None:
    store = SignedStore(HashStore(), b"secret", "the store")
    store.set("terms/1", sent)
    with pytest.raises(ProcessGroupError, match="a rank sent something else than its flags"):
        agree(store, 0, 2, {"--lr": "0.1"}, 5.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_store_is_lost(rank: int) -> None:
    class Lost(SignedStore):
        def under(self, prefix: str) -> SignedStore:
            return self

        def check(self, keys: Sequence[str]) -> bool:
            raise RuntimeError("Connection reset by peer\nframe #0")

    with pytest.raises(ProcessGroupError, match=r"compare their flags .*\(Connection reset by peer\): see the output"):
        agree(Lost(HashStore(), b"secret", "the store"), rank, 2, {}, 5.0)
