"""`python -m bench.faults`: runs under torchrun that are struck against a run left alone; about 3 minutes.

kills: three processes, of which one is killed by SIGKILL ten times, at random. stops: three processes, each of which is
stopped by SIGSTOP in turn. node: two local nodes, of which that of rank 0 dies and another comes. signal: SIGTERM, and
the same command again. Each goes on by itself, except after the signal. flips: one bit of one process's parameters, at
random, under plain `CDRGE`. Writes the parts that were run to bench/results/faults.json. `python -m bench.faults
kills` runs a part alone.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import RESULTS, machine
from tests.distributed.replicas import flip_bit, run_on_ranks

STEPS, KILLS = 400, 10
TRAIN = ["zo_kernels.train", "--threads", "1", "--steps", str(STEPS)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=50"]
PATIENCE = 90.0
"""Seconds for a run to come to its next step."""


class Run:
    """A run under torchrun, of one agent or several on this machine, and what can be seen of it from outside."""

    def __init__(self, folder: Path) -> None:
        self.out, self.agents = folder, list[subprocess.Popen[bytes]]()
        self._console = folder.with_suffix(".console")

    def launch(self, *options: str, flags: Sequence[str] = (), **variables: str) -> subprocess.Popen[bytes]:
        with self._console.open("ab") as console:
            command = [*TORCHRUN, *options, "-m", *TRAIN, "--out", str(self.out), *flags]
            self.agents.append(
                subprocess.Popen(command, stdout=console, stderr=console, env={**os.environ, **variables})
            )
        return self.agents[-1]

    def last_step(self) -> int:
        """The last that is journaled; -1 if there is none."""
        path = self.out / "metrics.jsonl"
        return path.read_bytes().count(b"\n") - 1 if path.exists() else -1

    def after(self, step: int) -> int:
        """Waits for a step beyond this one, and returns it."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.last_step()) <= step:
            if all(agent.poll() is not None for agent in self.agents) or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come beyond step {step}:\n{self._console.read_text()[-4000:]}")
            time.sleep(0.002)
        return found

    def resumed(self) -> list[int]:
        """The steps after which it went on."""
        return [int(step) for step in re.findall(r"resumed after step (\d+)", self._console.read_text())]

    def recovery(self, struck: float, before: int, starts: int) -> dict[str, Any]:
        """From a blow to the next step. before: the last step then; starts: how often it had gone on until then."""
        deadline = time.monotonic() + PATIENCE
        while len(self.resumed()) <= starts:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the run did not go on:\n{self._console.read_text()[-4000:]}")
            time.sleep(0.002)
        after = self.resumed()[starts]
        self.after(after)
        return {"step": before, "steps_lost": max(0, before - after), "seconds": round(time.monotonic() - struck, 2)}

    def end(self) -> None:
        """Waits for the last step; RuntimeError if an agent that still runs fails."""
        if any(agent.wait(PATIENCE) for agent in self.agents):
            raise RuntimeError(f"the run failed:\n{self._console.read_text()[-4000:]}")

    def weights(self) -> bytes:
        return (self.out / "weights.safetensors").read_bytes()

    def kill(self) -> None:
        for agent in self.agents:
            for pid in [*workers(agent.pid), agent.pid] if agent.poll() is None else []:
                os.kill(pid, signal.SIGKILL)


def workers(agent: int) -> list[int]:
    """The processes that an agent started, by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", (folder / "environ").read_bytes()) if parent == agent else None
        except OSError:  # it is gone
            continue
        if rank is not None:
            found[int(rank[1])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def kills(run: Run) -> dict[str, Any]:
    moments = random.Random(0)
    run.launch("--standalone", "--nproc-per-node=3")
    step, blows = run.after(0), []
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.0, 1.0))
        rank, starts = moments.randrange(3), len(run.resumed())
        victim, step, struck = workers(run.agents[0].pid)[rank], run.last_step(), time.monotonic()
        os.kill(victim, signal.SIGKILL)
        blows.append({"rank": rank, **run.recovery(struck, step, starts)})
    run.end()
    return {"world_size": 3, "kills": blows}


def stops(run: Run, timeout: float = 10.0) -> dict[str, Any]:
    run.launch("--standalone", "--nproc-per-node=3", flags=["--timeout", str(timeout)])
    run.after(0)
    blows = []
    for rank in (2, 1, 0):
        time.sleep(0.5)
        starts, step, struck = len(run.resumed()), run.last_step(), time.monotonic()
        os.kill(workers(run.agents[0].pid)[rank], signal.SIGSTOP)
        blows.append({"rank": rank, **run.recovery(struck, step, starts)})
    run.end()
    return {"world_size": 3, "timeout": timeout, "stops": blows}


def node(run: Run) -> dict[str, Any]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{s.getsockname()[1]}"

    def start(address: str) -> subprocess.Popen[bytes]:
        return run.launch(
            *("--nnodes=1:2", "--nproc-per-node=1", f"--local-addr={address}", "--rdzv-id=faults"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"),
            "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=6",
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        )

    start("127.0.0.2")  # has the endpoint; ranks go by address
    run.after(0)
    starts = len(run.resumed())
    first, step, struck = start("127.0.0.1"), run.last_step(), time.monotonic()
    joined = run.recovery(struck, step, starts)
    time.sleep(1.0)
    starts, step, struck = len(run.resumed()), run.last_step(), time.monotonic()
    for pid in [first.pid, *workers(first.pid)]:
        os.kill(pid, signal.SIGKILL)
    run.agents.remove(first)
    first.wait()
    died = run.recovery(struck, step, starts)
    starts, step, struck = len(run.resumed()), run.last_step(), time.monotonic()
    start("127.0.0.1")
    again = run.recovery(struck, step, starts)
    run.end()
    return {"a_node_came": joined, "that_of_rank_0_died": died, "it_came_back": again}


def signalled(run: Run) -> dict[str, Any]:
    options = ("--standalone", "--nproc-per-node=3")
    agent = run.launch(*options)
    run.after(100)
    struck = time.monotonic()
    agent.terminate()
    agent.wait(PATIENCE)
    ended = time.monotonic() - struck
    run.agents.remove(agent)
    step, struck = run.last_step(), time.monotonic()
    run.launch(*options)
    again = run.recovery(struck, step, 0)
    run.end()
    return {"seconds_to_end": round(ended, 2), "started_again": again}


def flips(trials: int = 10, every: int = 100) -> dict[str, Any]:
    """Which rank and bit after the first step, and what all ranks said `every` steps later."""
    moments, found = random.Random(1), []
    for _ in range(trials):
        rank, bit = moments.randrange(3), moments.randrange(4, 32)  # the next update rounds lower ones away
        said = run_on_ranks(3, flip_bit, rank, bit)
        named = f"{every}: rank {rank} holds other parameters than the rest before step {every}"
        found.append({"rank": rank, "bit": bit, "named_by_all": all(reply.startswith(named) for reply in said)})
    return {"world_size": 3, "check_every": every, "flips": found}


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {"kills": kills, "stops": stops, "node": node, "signal": signalled}


def main(parts: list[str]) -> None:
    path = RESULTS / "faults.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    content |= {"machine": machine(), "command": "python -m bench.faults", "steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "alone")
        command = [sys.executable, "-m", *TRAIN, "--out", str(alone)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        expected = (alone / "weights.safetensors").read_bytes()
        for part in [part for part in parts if part != "flips"]:
            run = Run(Path(folder, part))
            try:
                found = PARTS[part](run)
            finally:
                run.kill()
            content[part] = {**found, "identical_final_weights": run.weights() == expected}
            print(part, json.dumps(content[part]), flush=True)
    if "flips" in parts:
        content["flips"] = flips()
        print("flips", json.dumps(content["flips"]), flush=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(sys.argv[1:] or [*PARTS, "flips"])
