"""`python -m bench.durability`: a run killed twenty times against one left alone, and replays; about 2 minutes.

The default run of `python -m zo_kernels.train` once undisturbed, with a checkpoint every ten steps, and once killed by
SIGKILL at random moments and resumed each time. Then ten random steps of the killed run are replayed from its journal
and compared with the weights that the other one saved there. Writes bench/results/durability.json.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.report import RESULTS, machine
from zo_kernels.replay import replay
from zo_kernels.run.checkpoint import load_checkpoint
from zo_kernels.run.folder import checkpoint_path

KILLS, STEPS, EVERY = 20, 800, 10
TRAIN = [sys.executable, "-m", "zo_kernels.train", "--threads", "1"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        saved = ["--checkpoint-every", str(EVERY), "--keep-checkpoints", str(STEPS)]
        run([*TRAIN, *saved, "--out", str(whole)])
        moments = kill_often([*TRAIN, "--checkpoint-every", "25", "--out", str(killed)], killed, random.Random(0))
        same = (whole / "weights.safetensors").read_bytes() == (killed / "weights.safetensors").read_bytes()
        steps = sorted(random.Random(1).sample(range(0, STEPS + 1, EVERY), 10))
        replays = [replay_of(killed, whole, step) for step in steps]
    content: dict[str, Any] = {
        "machine": machine(),
        "command": "python -m bench.durability",
        "steps_when_killed": moments,
        "identical_final_weights": same,
        "replays": replays,
    }
    (RESULTS / "durability.json").write_text(json.dumps(content, indent=1) + "\n")
    right = sum(r["identical"] for r in replays)
    print(f"killed {len(moments)} times, after steps {moments}: final weights {'identical' if same else 'DIFFER'}")
    print(f"{right} of {len(replays)} replayed steps identical: {steps}")


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def kill_often(command: list[str], out: Path, moments: random.Random) -> list[int]:
    """Runs to the end, killed on the way; returns the steps that were journaled at each kill."""
    journaled: list[int] = []
    while len(journaled) < KILLS:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = lines(out)
        while lines(out) <= before and process.poll() is None:  # it has come to its steps
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.6))
        process.kill()
        if process.wait() == 0:
            raise RuntimeError("the run ended before it was killed so often: make it longer")
        journaled.append(lines(out) - 1)
        command = [*TRAIN, "--resume", str(out)]
    run(command)
    return journaled


def lines(out: Path) -> int:
    """Of the run's metrics: the first is of step 0."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def replay_of(run: Path, whole: Path, step: int) -> dict[str, Any]:
    found, expected = replay(run, step), load_checkpoint(checkpoint_path(whole, step)).model
    identical = all(torch.equal(found.weights[name], x) for name, x in expected.items())
    return {"step": step, "replayed": found.replayed, "seconds": found.seconds, "identical": identical}


if __name__ == "__main__":
    main()
