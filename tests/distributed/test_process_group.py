"""Meeting on boards that hold what former rounds left there; who is missing is named."""

import json
import socket
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import Store, TCPStore

from tests.distributed.launched import interrupted
from tests.distributed.replicas import on_ranks
from zo_kernels.distributed import rendezvous
from zo_kernels.distributed.process_group import is_launched
from zo_kernels.distributed.rendezvous import call_with_timeout, meet, process_identity, start_time
from zo_kernels.errors import ProcessGroupError

KEY = "zo_kernels/job/rendezvous"


def opened() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=12))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The launcher's store, and the variables that lead to it."""
    store = opened()
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "job",
    }.items():
        monkeypatch.setenv(name, value)
    return store


def all_meet(world_size: int, timeout: float, order: list[int]) -> dict[int, Store | str]:
    """The store that each rank, started in this order, has met the others in; or what it was told instead."""
    outcomes: dict[int, Store | str] = {}

    def join(rank: int) -> None:
        try:
            outcomes[rank] = meet(rank, world_size, timeout)
        except ProcessGroupError as error:
            outcomes[rank] = str(error)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    return outcomes


def share(outcomes: dict[int, Store | str]) -> bool:
    """Whether these are one store."""
    stores = [store for store in outcomes.values() if isinstance(store, Store)]
    stores[0].set("ours", "yes")
    return len(stores) == len(outcomes) and all(store.check(["ours"]) for store in stores)


def former_round(name: str, world_size: int, *, joined: bool) -> tuple[TCPStore, str]:
    """A rank 0 that is still there, and what it had published."""
    server = opened()
    server.set("name", name)
    if joined:
        for key, value in {"join/1": "another process", "join/2": "a third", "go": ""}.items():
            server.set(key, value)
    return server, json.dumps([name, world_size, ["127.0.0.1"], server.port])


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("left", ["nothing", "dead", "complete", "smaller", "another's port", "incomplete"])
def test_what_a_former_round_left_on_the_board_does_not_matter(board: TCPStore, left: str) -> None:
    """The others come first, and find but the former entry."""
    server, entry = former_round("old", 2 if left == "smaller" else 3, joined=left == "complete")
    if left == "dead":
        entry = json.dumps(["old", 3, ["127.0.0.1"], closed_port()])
    elif left == "another's port":
        server.set("name", "other")
    if left != "nothing":
        board.set(KEY, entry)
    assert share(all_meet(3, 45.0, [2, 1, 0]))
    if left not in ("nothing", "complete", "incomplete"):
        assert not server.check(["join/2"])


def test_a_rank_0_whose_place_is_taken_gives_up(board: TCPStore) -> None:
    outcomes = {}
    former = threading.Thread(target=lambda: outcomes.update(all_meet(3, 45.0, [0])))
    former.start()
    time.sleep(0.5)
    assert share(all_meet(3, 45.0, [0, 1, 2]))
    former.join()
    assert str(outcomes[0]).startswith("another rank 0 of this launch has taken over")


def test_a_board_that_is_not_reached_at_first(board: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 then finds a former entry where it could not publish its own yet: nobody has taken its place."""
    _, entry = former_round("old", 1, joined=False)
    board.set(KEY, entry)
    connected, tries = rendezvous._connect, iter([None, None])
    monkeypatch.setattr(rendezvous, "_connect", lambda *address: next(tries, connected(*address)))
    assert share(all_meet(2, 45.0, [0, 1]))


@pytest.mark.parametrize("agent", ["True", "False"])
def test_the_missing_are_named_to_all(board: TCPStore, monkeypatch: pytest.MonkeyPatch, agent: str) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    if agent == "False":
        monkeypatch.setenv("MASTER_PORT", str(closed_port()))
    outcomes = all_meet(4, 1.5, [0, 2])
    assert outcomes == dict.fromkeys([0, 2], "ranks 1, 3 of 4 did not join within 1.5 s: see the output of each")


def test_rank_0_is_missing(board: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rank 0 did not meet rank 1 within 0.5 s" in str(all_meet(2, 0.5, [1])[1])
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    monkeypatch.setenv("MASTER_PORT", str(closed_port()))
    assert "rank 1 did not find rank 0 at 127.0.0.1:" in str(all_meet(2, 0.5, [1])[1])


def test_without_an_agents_store_rank_0_opens_one_at_the_given_address(
    board: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    monkeypatch.setenv("MASTER_PORT", str(closed_port()))
    assert share(all_meet(3, 45.0, [1, 0, 2]))


def test_a_handler_of_a_signal_runs_while_a_rank_waits() -> None:
    seconds, _ = on_ranks(2, interrupted)
    assert 0 < seconds < 2.0


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


def test_bounded_leaves_a_call_behind_and_passes_errors_on() -> None:
    assert call_with_timeout(lambda: 3, 5.0) == 3
    with pytest.raises(TimeoutError):
        call_with_timeout(lambda: time.sleep(5.0), 0.05)
    with pytest.raises(KeyError):
        call_with_timeout(lambda: {}["key"], 5.0)


def test_an_identity_is_of_one_process() -> None:
    _, _, pid, start = json.loads(process_identity())
    assert start_time(pid) == start
    assert start_time(2**22 + 1) is None
