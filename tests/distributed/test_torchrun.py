"""Restarts by torchrun: after processes are killed or stopped, and after nodes die and come. The signal to end."""

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
GRACE = 30.0
"""Seconds that torchrun gives a process between SIGTERM and SIGKILL when it restarts all of them."""


class Launch:
    """Agents of torchrun on this machine, whose processes write to one folder (launched.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}
        own = {"PYTHONPATH": str(ROOT), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
        own["XDG_STATE_HOME"] = str(self.folder / "state")  # where the processes make their secret
        with (self.folder / "output").open("ab") as output:
            agent = subprocess.Popen(
                [*TORCHRUN, *options, "-m", "tests.distributed.launched", str(self.folder)],
                env={**{k: v for k, v in os.environ.items() if k != "ZO_KERNELS_SECRET"}, **quiet, **own, **variables},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.agents.append(agent)
        return agent

    def wait_for_round(self, rounds_before: set[str], world_size: int, seconds: float = REACHED) -> list[int]:
        """Waits for a round of so many processes that is not one of these; returns its processes by rank."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, processes in self.read_rounds().items():
                if name not in rounds_before and len(processes) == world_size:
                    assert name == "-".join(str(processes[rank]) for rank in range(world_size))
                    return [processes[rank] for rank in range(world_size)]
            time.sleep(0.02)
        raise AssertionError(f"no round of {world_size}: {self.read_rounds()}\n{self.read_output()}")

    def read_rounds(self) -> dict[str, dict[int, int]]:
        """Returns the processes by rank of each round, whose name is what all of them saw of each other."""
        path, rounds = self.folder / "met", dict[str, dict[int, int]]()
        for line in path.read_text().splitlines() if path.exists() else []:
            name, rank, _, process = line.split()
            rounds.setdefault(name, {})[int(rank)] = int(process)
        return rounds

    def read_output(self) -> str:
        return (self.folder / "output").read_text()

    def end(self) -> list[int]:
        """Tells the processes to end well, and returns the exit codes of the agents that still run."""
        (self.folder / "end").touch()
        return [agent.wait(REACHED) for agent in self.agents if agent.returncode is None]

    def kill(self) -> None:
        """Kills what is left."""
        processes = [pid for found in self.read_rounds().values() for pid in found.values() if is_running(pid)]
        for pid in [*(agent.pid for agent in self.agents if agent.poll() is None), *processes]:
            os.kill(pid, signal.SIGKILL)
        for agent in self.agents:
            agent.wait()


def is_running(pid: int) -> bool:
    """Whether this process is one of these tests', and not a zombie."""
    try:
        return "tests.distributed.launched" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launch = Launch(tmp_path)
    yield launch
    launch.kill()


@pytest.mark.slow
def test_processes_that_are_killed_or_stopped(launch: Launch) -> None:
    """Two at once. Those that are stopped are named by the third, and killed by torchrun after its 30 s of grace."""
    launch.start("--standalone", "--nproc-per-node=3")
    processes = launch.wait_for_round(set(), 3)
    for victims, number, seconds in (([0, 1], signal.SIGKILL, REACHED), ([0, 2], signal.SIGSTOP, GRACE + REACHED)):
        before = set(launch.read_rounds())
        for victim in victims:
            os.kill(processes[victim], number)
        former, processes = processes, launch.wait_for_round(before, 3, seconds)
        assert not any(is_running(pid) for pid in former)
    assert "no answer from ranks 0, 2 for 2." in launch.read_output()
    assert launch.end() == [0], launch.read_output()


@pytest.mark.slow
def test_nodes_that_die_and_come(launch: Launch) -> None:
    """The node of rank 0 dies; later a new node becomes the first."""
    endpoint = f"127.0.0.1:{find_free_port()}"

    def start_node(address: str) -> subprocess.Popen[bytes]:
        return launch.start(
            *("--nnodes=1:3", "--nproc-per-node=1", f"--local-addr={address}", "--rdzv-id=test"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"),
            "--rdzv-conf=join_timeout=30,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=6",
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        )

    start_node("127.0.0.3")  # has the endpoint; ranks go by address
    wait_for_listener(endpoint)
    first, _ = start_node("127.0.0.1"), start_node("127.0.0.2")
    processes = launch.wait_for_round(set(), 3)
    before = set(launch.read_rounds())
    for pid in (first.pid, processes[0]):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    launch.wait_for_round(before, 2)
    before = set(launch.read_rounds())
    start_node("127.0.0.1")
    launch.wait_for_round(before, 3)
    assert launch.end() == [0, 0, 0], launch.read_output()


@pytest.mark.slow
def test_a_fixed_number_of_nodes(launch: Launch) -> None:
    """A process of either node is killed: each node's agent restarts its own."""
    port = find_free_port()
    for node in (0, 1):
        launch.start(
            *("--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"),
            *("--master-addr=127.0.0.1", f"--master-port={port}"),
        )
    processes = launch.wait_for_round(set(), 2)
    for victim in (1, 0):
        before = set(launch.read_rounds())
        os.kill(processes[victim], signal.SIGKILL)
        processes = launch.wait_for_round(before, 2)
    assert launch.end() == [0, 0], launch.read_output()


def find_free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for_listener(endpoint: str) -> None:
    host, port = endpoint.split(":")
    deadline = time.monotonic() + REACHED
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port))).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"nothing listens at {endpoint}")


def test_the_signal_to_end_ends_all(launch: Launch) -> None:
    """Also a process that is stopped: the agent kills it after the time that it is given for that."""
    agent = launch.start("--standalone", "--nproc-per-node=2")
    processes = launch.wait_for_round(set(), 2)
    os.kill(processes[1], signal.SIGSTOP)
    agent.terminate()
    assert agent.wait(REACHED) != 0
    assert not any(is_running(pid) for pid in processes)
