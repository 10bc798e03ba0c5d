"""Only who knows the secret is believed, whatever else is written into a store."""

import os
import pickle
import socket
import struct
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore, TCPStore

from zo_kernels.distributed.launch import Launch
from zo_kernels.distributed.rendezvous import Meeting, meet
from zo_kernels.distributed.secret import VARIABLE, find_secret
from zo_kernels.distributed.signed_store import SignedStore
from zo_kernels.errors import ProcessGroupError

NOT_OURS = "was not written with this rank's secret"
ADVICE = "set ZO_KERNELS_SECRET to the same text on all nodes"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# The secret


def test_the_secret_is_made_once_for_this_user_alone(home: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(find_secret())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = home / ".local" / "state" / "zo_kernels" / "secret"
    assert set(found) == {path.read_bytes()}
    assert len(found) == 8
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_secret_of_the_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "correct horse battery staple")
    assert find_secret() == b"correct horse battery staple"
    assert not home.exists()
    for short in ("", "guess"):
        monkeypatch.setenv(VARIABLE, short)
        with pytest.raises(ProcessGroupError, match=f"has {len(short)} characters: give it at least 16"):
            find_secret()


def test_a_secret_that_others_may_know_is_refused(home: Path, tmp_path: Path) -> None:
    find_secret()
    path = home / ".local" / "state" / "zo_kernels" / "secret"
    path.chmod(0o640)
    with pytest.raises(ProcessGroupError, match="nobody else can read: remove it, or set ZO_KERNELS_SECRET"):
        find_secret()
    path.chmod(0o600)
    path.write_text("mine")
    with pytest.raises(ProcessGroupError, match="does not hold a secret of zo_kernels"):
        find_secret()


def test_a_link_is_not_followed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files takes the place of a home that can't be used."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "known").write_text("0" * 64)
    (tmp_path / "known").chmod(0o600)
    path = home / ".local" / "state" / "zo_kernels" / "secret"
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "known")
    secret = find_secret()
    assert secret != b"0" * 64
    assert (tmp_path / f"zo_kernels-{os.geteuid()}" / "secret").read_bytes() == secret


def test_no_place_for_a_secret(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(home))
    with pytest.raises(ProcessGroupError, match=r"no secret can be kept .*: set ZO_KERNELS_SECRET for all of them"):
        find_secret()


# The store


def test_entries_that_are_not_ours_are_refused() -> None:
    bare = HashStore()
    store = SignedStore(bare, b"a secret", "the store")
    part = store.under("round")
    part.set("a", "1")
    assert part.get("a") == b"1"
    assert store.get("round/a") == b"1"
    assert part.compare_set("b", "", "me") == part.compare_set("b", "", "you") == b"me"
    assert part.compare_set("b", "me", b"\x00\xff") == b"\x00\xff"
    assert part.check(["a", "b"])
    assert not part.check(["a", "c"])
    for forged in (b"", b"1", pickle.dumps([1]), b"x" * 100, bare.get("round/a")[:-1], bare.get("round/b")):
        bare.set("round/a", forged)
        with pytest.raises(ProcessGroupError, match=f"an entry of the store {NOT_OURS} .*{ADVICE}"):
            part.get("a")
    with pytest.raises(ProcessGroupError, match=NOT_OURS):
        SignedStore(bare, b"another secret", "the store").get("round/b")


# The meeting


@pytest.fixture
def agents_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=12))


def meet_at(port: int, rank: int) -> Meeting:
    return meet(Launch(rank, 2, rank, 2, "127.0.0.1", port, True), 20.0)


@pytest.mark.parametrize("content", ["2/evil", pickle.dumps(["2/evil"]), "x" * (7 << 20)])
def test_a_foreign_round_is_refused_at_once(agents_store: TCPStore, content: str) -> None:
    agents_store.set("zo_kernels/round", content)
    started = time.monotonic()
    with pytest.raises(ProcessGroupError, match=f"{NOT_OURS} .*{ADVICE}"):
        meet_at(agents_store.port, 1)
    assert time.monotonic() - started < 10.0


def test_nodes_without_a_common_secret(agents_store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "the secret of one node")
    here = SignedStore(agents_store, b"the secret of another node", "the store")
    here.set("zo_kernels/round", "2/round")
    with pytest.raises(ProcessGroupError, match=f"{NOT_OURS} .*{ADVICE}"):
        meet_at(agents_store.port, 1)


def test_an_earlier_round_can_not_be_played_again(agents_store: TCPStore) -> None:
    """What rank 0 told an earlier process of this rank does not let a later one go."""
    store = SignedStore(agents_store, find_secret(), "the store")
    store.set("zo_kernels/round", "2/old")
    store.set("2/old/go", '["an earlier process"]')
    later: list[Meeting] = []
    thread = threading.Thread(target=lambda: later.append(meet_at(agents_store.port, 1)))
    thread.start()
    while not store.check(["2/old/join/1"]):
        time.sleep(0.01)
    time.sleep(0.3)
    assert thread.is_alive()
    meeting = meet_at(agents_store.port, 0)
    thread.join()
    meeting.store.set("ours", "yes")
    assert later[0].store.get("ours") == b"yes"


@pytest.fixture
def lying_server() -> Iterator[int]:
    """The port of a server that talks like a TCPStore, and announces an entry of 2^60 bytes."""

    def talk(connection: socket.socket) -> None:
        with connection:
            hello = b""
            while len(hello) < 10:  # the client's greeting, which ends with a number that it wants back
                hello += (more := connection.recv(100))
                if not more:
                    return
            connection.sendall(hello[6:10])
            while request := connection.recv(1000):
                connection.sendall(b"\0" if request[0] in (5, 6) else struct.pack("<Q", 2**60))  # 5, 6: is it there?

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while server.fileno() >= 0:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_a_length_that_can_not_be_is_not_allocated(lying_server: int) -> None:
    with pytest.raises(ProcessGroupError, match="rank 1 did not meet the others at"):
        meet_at(lying_server, 1)


def test_rank_0_listens_to_this_node_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = Launch(0, 1, 0, 1, "127.0.0.1", port, False)
    meeting = meet(launch, 20.0)
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    six = [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if " 0A " in line]
    at_port = [address for address in listening + six if address.endswith(f":{port:04X}")]
    assert at_port == [f"0100007F:{port:04X}"]
    assert meeting.store.check([])
