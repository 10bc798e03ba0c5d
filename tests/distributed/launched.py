"""What torchrun starts in tests, `-m tests.distributed.launched FOLDER`: gathers forever, and writes whom it met.

Each process appends a line "ROUND RANK WORLD_SIZE PID" to FOLDER/met after its first gather in a round, the round being
the processes of all ranks. It ends well once FOLDER/end is there, of which rank 0 tells the others.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from zo_kernels.distributed.process_group import process_group, wait_for
from zo_kernels.distributed.replicas import Replicas

PATIENCE = 2.0


def main(folder: Path) -> None:
    signal.signal(signal.SIGTERM, exit_cleanly)
    torch.set_num_threads(1)
    with process_group("cpu", 20.0):
        replicas, is_first = Replicas(timeout=PATIENCE), True
        while True:
            mine = torch.tensor([[os.getpid(), (folder / "end").exists()]])
            received = replicas.exchange(lambda _, mine=mine: mine, replicas.world_size, (2,)).tolist()
            if is_first:
                met = "-".join(str(int(pid)) for pid, _ in received)
                with (folder / "met").open("a") as file:
                    file.write(f"{met} {replicas.rank} {replicas.world_size} {os.getpid()}\n")
            is_first = False
            if received[0][1]:
                break
            time.sleep(0.02)


def exit_cleanly(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def interrupt_wait(rank: int) -> float:
    """Returns after how many seconds a signal handler got rank 0 out of waiting for rank 1. Rank 1 returns 0."""
    received, mine = [torch.zeros(1), torch.zeros(1)], torch.ones(1)
    if rank == 1:
        time.sleep(3.0)
        wait_for(dist.all_gather(received, mine, async_op=True), 10.0)
        return 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    started = time.monotonic()
    try:
        wait_for(dist.all_gather(received, mine, async_op=True), 10.0)
    except InterruptedError:
        return time.monotonic() - started
    return -1.0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
