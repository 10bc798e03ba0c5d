"""Ranks meet in stores that hold what earlier rounds left there; errors name the ranks that are missing."""

import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from tests.distributed.launched import interrupt_wait
from tests.distributed.replicas import run_on_ranks
from tests.server import server
from zo_kernels.distributed import process_group
from zo_kernels.distributed.launch import Launch, is_launched
from zo_kernels.distributed.process_group import use_own_gpu
from zo_kernels.distributed.rendezvous import call_with_timeout, meet
from zo_kernels.distributed.secret import find_secret
from zo_kernels.distributed.signed_store import SignedStore
from zo_kernels.errors import ProcessGroupError

ROUND = "zo_kernels/round"


@pytest.fixture
def torchruns_store(monkeypatch: pytest.MonkeyPatch) -> SignedStore:
    """The launcher's store as this user's processes see it, and the variables that lead to it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=12))
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    return SignedStore(store, find_secret(), "the store")


@pytest.fixture
def rank_0s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a launcher that leaves it to rank 0 to open a store."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_closed_port()))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")


def find_closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def make_launch(rank: int, world_size: int) -> Launch:
    """What the variables of the environment say, for a rank of this process."""
    shares_store = os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Launch(rank, world_size, rank, world_size, address, port, shares_store)


def meet_all(world_size: int, timeout: float, order: list[int]) -> dict[int, SignedStore | str]:
    """Starts these ranks in this order. Returns each one's store, or its error."""
    outcomes: dict[int, SignedStore | str] = {}

    def join(rank: int) -> None:
        try:
            outcomes[rank] = meet(make_launch(rank, world_size), timeout).store
        except ProcessGroupError as error:
            outcomes[rank] = str(error)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    return outcomes


def are_one_store(outcomes: dict[int, SignedStore | str]) -> bool:
    stores = [store for store in outcomes.values() if isinstance(store, SignedStore)]
    stores[0].set("ours", "yes")
    return len(stores) == len(outcomes) and all(store.check(["ours"]) for store in stores)


@pytest.mark.parametrize("left", ["nothing", "complete", "smaller", "incomplete", "timed out"])
def test_what_an_earlier_round_left_in_the_store_does_not_matter(torchruns_store: SignedStore, left: str) -> None:
    """The others come first, and find only the earlier round."""
    name = "2/old" if left == "smaller" else "3/old"
    earlier = torchruns_store.under(name)
    if left != "nothing":
        torchruns_store.set(ROUND, name)
    if left == "complete":
        for key in ("join/1", "join/2", "go"):
            earlier.set(key, "another process")
    elif left == "timed out":
        earlier.set("join/1", "another process")
        earlier.set("missing", "[2]")
    assert are_one_store(meet_all(3, 45.0, [2, 1, 0]))
    if left == "smaller":
        assert not earlier.check(["join/2"])


@pytest.mark.slow
def test_a_later_rank_0_takes_the_place_of_an_earlier_one(torchruns_store: SignedStore) -> None:
    """Neither round gets processes of the other, and the earlier rank 0 says for whom it waited."""
    outcomes = {}
    earlier = threading.Thread(target=lambda: outcomes.update(meet_all(3, 4.0, [0])))
    earlier.start()
    time.sleep(0.5)
    assert are_one_store(meet_all(3, 45.0, [0, 1, 2]))
    earlier.join()
    assert outcomes[0] == "ranks 1, 2 of 3 did not join within 4 s: see the output of each"


def test_a_process_that_joined_an_earlier_round_moves_on(torchruns_store: SignedStore) -> None:
    """Rank 0 dies before all have joined its round; a later one starts another, for which rank 1 need not restart."""
    torchruns_store.set(ROUND, "2/old")
    outcomes = {}
    other = threading.Thread(target=lambda: outcomes.update(meet_all(2, 45.0, [1])))
    other.start()
    while not torchruns_store.under("2/old").check(["join/1"]):
        time.sleep(0.01)
    outcomes.update(meet_all(2, 45.0, [0]))
    other.join()
    assert are_one_store(outcomes)


@pytest.mark.parametrize("fixture", ["torchruns_store", "rank_0s_address"])
def test_missing_ranks_are_named_to_all(fixture: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(fixture)
    outcomes = meet_all(4, 1.5, [0, 2])
    assert outcomes == dict.fromkeys([0, 2], "ranks 1, 3 of 4 did not join within 1.5 s: see the output of each")


@pytest.mark.slow
def test_rank_0_is_missing(torchruns_store: SignedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    said = str(meet_all(2, 0.5, [1])[1])
    assert said.startswith("rank 1 did not meet the others at 127.0.0.1:")
    assert "within 0.5 s (rank 0 has not started a round there): see the output of rank 0" in said
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" in said
    monkeypatch.setenv("MASTER_PORT", str(find_closed_port()))  # as torchrun tells the nodes that outlive rank 0's
    for rank in (0, 1):
        said = str(meet_all(2, 0.5, [rank])[rank])
        assert f"rank {rank} did not meet the others at 127.0.0.1:" in said
        assert "(nothing listens there)" in said
        assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" in said


def test_rank_0_is_missing_at_its_own_address(rank_0s_address: None) -> None:
    said = str(meet_all(2, 0.5, [1])[1])
    assert "(nothing listens there): see the output of rank 0; check that rank 0 runs, and MASTER_ADDR" in said


@pytest.mark.slow
def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is stopped: the kernel still accepts connections."""
    monkeypatch.setattr("zo_kernels.distributed.rendezvous._GRACE", 0.5)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MASTER_PORT", str(silent.getsockname()[1]))
        started = time.monotonic()
        for rank, said in meet_all(2, 1.0, [0, 1]).items():
            assert f"rank {rank} did not meet the others at 127.0.0.1:" in str(said)
            assert "(no answer within 2 s)" in str(said)
        assert time.monotonic() - started < 10.0
    for left_behind in set(threading.enumerate()) - before:  # one that torch returns to at exit ends the interpreter
        left_behind.join(60)
        assert not left_behind.is_alive()


def test_the_port_is_taken(rank_0s_address: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        said = str(meet_all(2, 0.5, [0])[0])
    assert said.startswith("rank 0 did not meet the others at 127.0.0.1:")
    assert "address already in use" in said


def test_rank_0_opens_a_store_where_the_launcher_shares_none(rank_0s_address: None) -> None:
    assert are_one_store(meet_all(3, 45.0, [1, 0, 2]))


@pytest.mark.slow
def test_signal_handlers_run_while_a_rank_waits() -> None:
    seconds, _ = run_on_ranks(2, interrupt_wait)
    assert 0 < seconds < 2.0


def enter_as_rank(rank: int, port: int, gpus: dict[int, str], queue: Any) -> None:
    """What a process on such a machine says that wants to be this rank of two in a group of NCCL."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()}, TORCHELASTIC_USE_AGENT_STORE="False")
    sys.modules[process_group.__module__]._name_of_gpu = lambda number: gpus[number]
    try:
        with process_group("cuda", 60.0):
            queue.put("entered")
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("gpus", "which"),
    [({0: "GPU-a", 1: "GPU-a"}, "ranks 0, 1 share the GPU GPU-a"), ({0: "GPU-a", 1: ""}, "rank 1 finds no GPU")],
)
def test_processes_that_would_share_a_gpu_do_not_ask_nccl(gpus: dict[int, str], which: str) -> None:
    port, queue = find_closed_port(), server.Queue()
    processes = [server.Process(target=enter_as_rank, args=(rank, port, gpus, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    said = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert said[0] == said[1]
    assert said[0].startswith(f"UsageError: NCCL needs a GPU for each process, but {which}")


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else takes memory of the first one."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for number in ("1", "2"):
        monkeypatch.setenv("LOCAL_RANK", number)
        use_own_gpu()
    monkeypatch.delenv("LOCAL_RANK")
    use_own_gpu()
    assert taken == [1]


def test_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT")
    assert not is_launched()


def test_call_with_timeout_leaves_a_call_behind_and_passes_errors_on() -> None:
    assert call_with_timeout(lambda: 3, 5.0) == 3
    with pytest.raises(TimeoutError):
        call_with_timeout(lambda: time.sleep(5.0), 0.05)
    with pytest.raises(KeyError):
        call_with_timeout(lambda: {}["key"], 5.0)
