"""The checks of processes on a device, on the CPU: they pass, and they find what is planted."""

import pytest
import torch

from bench.gpu import check_processes
from bench.gpu.plan import all_steps
from zo_kernels.distributed.replicas import Replicas
from zo_kernels.params.sharded import ShardedArena


def test_exchange(monkeypatch):
    assert check_processes.exchange("cpu")["backend"] == "gloo"
    right = Replicas.exchange
    monkeypatch.setattr(Replicas, "exchange", lambda *args: right(*args) + torch.linspace(0, 1, 2))
    with pytest.raises(AssertionError, match="by a group of one"):
        check_processes.exchange("cpu")


def test_sharded(monkeypatch):
    assert check_processes.sharded("cpu") == {"elements": 512 + 128}
    right = ShardedArena.each

    def elsewhere(self, segment, kernel, *state):
        right(self, segment, lambda *args, offset: kernel(*args, offset=offset + 128), *state)

    monkeypatch.setattr(ShardedArena, "each", elsewhere)
    with pytest.raises(AssertionError, match="sharded"):
        check_processes.sharded("cpu")


def test_the_plan_has_them():
    for device in ("cpu", "cuda"):
        assert {"check.exchange", "check.sharded"} <= {step.name for step in all_steps(device)}
