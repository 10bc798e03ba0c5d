"""Rank 0's word reaches the others as JSON or not at all, and they wait only while it lives."""

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from zo_kernels.distributed import announcements
from zo_kernels.distributed.announcements import MOST_BYTES, Announcements
from zo_kernels.distributed.signed_store import SignedStore
from zo_kernels.errors import ReplicaError, ReplicaStoppedError, UsageError


def read_number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("no number")
    return value


def announce_to(ranks: int, decide: Callable[[], Any], patience: float = 20.0) -> list[Any]:
    """What each rank gets: a value, or its error."""
    bare, outcomes = HashStore(), dict[int, Any]()

    def take_part(rank: int) -> None:
        speaker = Announcements(SignedStore(bare, b"secret", "the store"), rank, patience)
        try:
            outcomes[rank] = speaker.announce(decide, read_number)
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[rank] for rank in range(ranks)]


def test_a_value_reaches_all() -> None:
    assert announce_to(3, lambda: 5) == [5, 5, 5]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (UsageError("no such file"), ReplicaError, "rank 0 failed: no such file"),
        (RuntimeError("0x7f3a"), ReplicaError, "rank 0 failed: see its output"),
        (KeyboardInterrupt(), ReplicaStoppedError, "rank 0 was interrupted"),
    ],
)
def test_an_error_reaches_all(error: BaseException, kind: type[Exception], said: str) -> None:
    def fail() -> int:
        raise error

    own, other = announce_to(2, fail)
    assert own is error
    assert type(other) is kind
    assert str(other) == said


def test_a_value_of_another_kind_is_refused_by_all() -> None:
    for outcome in announce_to(2, lambda: "five"):
        assert isinstance(outcome, ReplicaError)
        assert str(outcome) == "what rank 0 announced can't be read (no number)"


def test_too_long_a_value_is_not_sent() -> None:
    own, other = announce_to(2, lambda: "x" * MOST_BYTES)
    assert f"more than {MOST_BYTES}" in str(own)
    assert "rank 0 failed: rank 0 has" in str(other)


def test_they_wait_while_rank_0_lives_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "_SIGN_OF_LIFE", 0.05)

    def take_long() -> int:
        time.sleep(1.0)
        return 7

    assert announce_to(2, take_long, patience=0.5) == [7, 7]
    monkeypatch.setattr(announcements, "_SIGN_OF_LIFE", 100.0)
    assert str(announce_to(2, take_long, patience=0.5)[1]).startswith("no answer from rank 0 for 0.5 s")


class Command:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["pickle", "json", "long", "nested", "another key"])
def test_another_process_in_the_store_runs_nothing(kind: str, tmp_path: Path) -> None:
    """It writes what rank 0 would announce, in one store without the secret, and in the next one with it."""
    mark = tmp_path / "ran"
    content = {
        "pickle": pickle.dumps([Command(mark)]),
        "json": b'{"value": 3}',
        "long": b'{"value": "' + b"x" * MOST_BYTES + b'"}',
        "nested": b'{"value": ' + b"[" * 100_000,
        "another key": b"",
    }[kind]
    bare = HashStore()
    store = SignedStore(bare, b"secret", "the store")
    if kind == "another key":
        store.set("0", '{"value": 3}')
        content = bare.get("0")
    bare.set("1", content)
    with pytest.raises(ReplicaError, match="was not written with this rank's secret"):
        Announcements(store, 1, 5.0).announce(lambda: None, read_number)
    if kind not in ("json", "another key"):
        store.set("1", content)
        with pytest.raises(ReplicaError, match="what rank 0 announced can't be read"):
            Announcements(store, 1, 5.0).announce(lambda: None, read_number)
    assert not mark.exists()
