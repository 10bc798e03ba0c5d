"""A server process that has imported what tests need in processes of their own, and forks these in milliseconds."""

import multiprocessing
import sys
from multiprocessing import forkserver
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the processes find the tests' modules by their names
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "tests.train.crashes",
        "tests.distributed.replicas",
        "torch._dynamo",  # which torch loads late, but every optimizer needs
        "torch.distributed.fsdp",
        "tests.server_ready",
    ]
)


def start() -> None:
    """Starts the server before others do, who would have it import less: there is one."""
    forkserver.ensure_running()
