"""Processes that share a run, on the device: a group of one, whose steps must be those of no group."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import zo_kernels as zo
from tests.cases import assert_same_bits
from zo_kernels.distributed.replicas import Replicas, digest

_PROBES, _STEPS = 512, 3


def exchange(device: str) -> dict[str, Any]:
    """Steps through a group of NCCL (gloo on the CPU), the digest, and what an exchange takes."""
    theta = torch.linspace(-1, 1, 5000).to(device)
    assert digest(theta) == digest(theta.cpu()), "the digest on the device is not that of the CPU"
    alone = _trained(_net(device), None)
    with _group(device):
        replicas = Replicas(check_every=1, timeout=30.0)
        assert_same_bits(_trained(_net(device), replicas), alone, "theta, by a group of one")
        seconds = []
        for _ in range(50):
            started = time.perf_counter()
            replicas.exchange(lambda mine: torch.zeros(mine.stop - mine.start, 2), _PROBES, (2,))
            seconds.append(time.perf_counter() - started)
        return {"backend": dist.get_backend(), "exchange, median s": median(seconds)}


def sharded(device: str) -> dict[str, Any]:
    """FSDP2 over a mesh of one."""
    alone = _trained(_net(device), None)
    with _group(device):
        net = _net(device)
        fully_shard(net, mesh=init_device_mesh(next(net.parameters()).device.type, (1,)))
        assert_same_bits(_trained(net, None), alone, "theta, sharded")
    return {"elements": alone.numel()}


def _net(device: str) -> nn.Module:
    net = nn.Linear(37, 11)
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return net.to(device)


def _trained(net: nn.Module, replicas: Replicas | None) -> Tensor:
    """Its parameters after some steps, on the CPU, with the padding between them."""
    x = torch.linspace(-1, 1, 37, device=next(net.parameters()).device)
    optimizer = zo.optim.CDRGE(net.parameters(), lr=2**-6, probes=16, replicas=replicas)
    for _ in range(_STEPS):
        optimizer.step(lambda: net(x).square().mean())
    return optimizer.arena.flat.cpu()


@contextmanager
def _group(device: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder, "store")), 1)
        backend = "nccl" if torch.zeros(1, device=device).is_cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
