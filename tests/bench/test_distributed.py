"""The count of bytes, and the processes, that `python -m bench.distributed` rests on."""

import socket
import sys

import pytest

from bench.distributed import _steps, bytes_of
from bench.ranks import Ranks
from bench.scaling import sent
from bench.wire import sent as counted
from tests.server import start

linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")


@linux
def test_the_kernel_counts_what_a_connection_sends():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            payload, headers = counted()
            ours.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(theirs.recv(left))
            after, headers_after = counted()
    assert after - payload == 100_000
    assert headers_after - headers >= 2 * 52
    assert (headers_after - headers) % 52 == 0


@linux
@pytest.mark.slow
def test_what_a_step_sends_is_what_the_formula_says():
    """As the kernel counts it; gloo's own words are the rest."""
    start()
    with Ranks(2) as group:
        found = bytes_of(group, steps=4)
    assert found["probes"] == 512
    assert sent(512, 2) <= found["payload"] <= 1.1 * sent(512, 2)
    assert found["headers"] > 0


def test_work_that_fails_on_a_rank_is_told():
    start()
    with Ranks(1) as group, pytest.raises(RuntimeError, match=r"rank 0 of 1 failed:[^$]*KeyError: 'tiny, n=3'"):
        group.call(_steps, "tiny", 3)
