"""torchrun's restarts: processes that are killed or stopped, nodes that die and come, and the signal to end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=9", "--monitor-interval=0.1"]
REACHED = 60.0
"""Seconds for a round to begin, on a busy machine."""


class Launch:
    """Agents of torchrun on this machine, whose processes write to one folder (launched.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}
        with (self.folder / "output").open("ab") as output:
            agent = subprocess.Popen(
                [*TORCHRUN, *options, "-m", "tests.distributed.launched", str(self.folder)],
                env={**os.environ, **quiet, "PYTHONPATH": str(ROOT), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.agents.append(agent)
        return agent

    def met(self, rounds_before: set[str], world_size: int) -> list[int]:
        """Waits for a round of so many that is not one of these; the processes by their ranks."""
        deadline = time.monotonic() + REACHED
        while time.monotonic() < deadline:
            for name, members in self.rounds().items():
                if name not in rounds_before and len(members) == world_size:
                    assert name == "-".join(str(members[rank]) for rank in range(world_size))
                    return [members[rank] for rank in range(world_size)]
            time.sleep(0.02)
        raise AssertionError(f"no round of {world_size}: {self.rounds()}\n{self.output()}")

    def rounds(self) -> dict[str, dict[int, int]]:
        """What all processes of a round saw of each other, to process by rank."""
        path, rounds = self.folder / "met", dict[str, dict[int, int]]()
        for line in path.read_text().splitlines() if path.exists() else []:
            name, rank, _, process = line.split()
            rounds.setdefault(name, {})[int(rank)] = int(process)
        return rounds

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def end(self) -> None:
        """Kills what is left."""
        processes = [pid for members in self.rounds().values() for pid in members.values() if runs(pid)]
        for pid in [*(agent.pid for agent in self.agents if agent.poll() is None), *processes]:
            os.kill(pid, signal.SIGKILL)
        for agent in self.agents:
            agent.wait()


def runs(pid: int) -> bool:
    """Whether this process is one of these tests', and not a zombie."""
    try:
        return "tests.distributed.launched" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launch = Launch(tmp_path)
    yield launch
    launch.end()


def test_processes_that_are_killed_or_stopped(launch: Launch) -> None:
    """Two at once; then one that is stopped, which is named and does not cost the 30 s that torchrun gives it."""
    agent = launch.start("--standalone", "--nproc-per-node=3")
    members = launch.met(set(), 3)
    for victims, blow in (([0, 1], signal.SIGKILL), ([2], signal.SIGSTOP), ([0], signal.SIGSTOP)):
        before = set(launch.rounds())
        for victim in victims:
            os.kill(members[victim], blow)
        former, members = members, launch.met(before, 3)
        assert not any(runs(pid) for pid in former)
    for rank in (0, 2):
        said = f"no answer of rank {rank} for 2 s: stopped, stuck or cut off; killed rank {rank}, of this machine"
        assert said in launch.output()
    (launch.folder / "end").touch()
    assert agent.wait(REACHED) == 0, launch.output()


def test_nodes_that_die_and_come(launch: Launch) -> None:
    """Rank 0's node dies, the address of whose store is all that torchrun tells the third; a new one is the first."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{s.getsockname()[1]}"

    def node(address: str) -> subprocess.Popen[bytes]:
        return launch.start(
            *("--nnodes=1:3", "--nproc-per-node=1", f"--local-addr={address}", "--rdzv-id=test"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"),
            "--rdzv-conf=join_timeout=30,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=6",
        )

    third = node("127.0.0.3")  # has the endpoint; ranks go by address
    listening(endpoint)
    first, second = node("127.0.0.1"), node("127.0.0.2")
    members = launch.met(set(), 3)
    before = set(launch.rounds())
    for pid in (first.pid, members[0]):
        os.kill(pid, signal.SIGKILL)
    launch.met(before, 2)
    before = set(launch.rounds())
    first = node("127.0.0.1")
    launch.met(before, 3)
    (launch.folder / "end").touch()
    codes = [agent.wait(REACHED) for agent in (first, second, third)]
    assert codes == [0, 0, 0], launch.output()


def listening(endpoint: str) -> None:
    host, port = endpoint.split(":")
    deadline = time.monotonic() + REACHED
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port))).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"nobody listens at {endpoint}")


def test_the_signal_to_end_ends_all(launch: Launch) -> None:
    """Also one that is stopped: the agent kills it after the time that it is given for that."""
    agent = launch.start("--standalone", "--nproc-per-node=2")
    members = launch.met(set(), 2)
    os.kill(members[1], signal.SIGSTOP)
    agent.terminate()
    assert agent.wait(REACHED) != 0
    assert not any(runs(pid) for pid in members)
