"""Processes that share a run, on a GPU with NCCL: the steps of a group of one are those of no group, bit for bit.

The same tests run on the CPU with gloo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import zo_kernels as zo
from tests.cases import assert_same_bits, each_device
from zo_kernels.distributed.replicas import Replicas, digest


@contextmanager
def group_of_one(device: str, folder: Path) -> Iterator[None]:
    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def net_on(device: str) -> nn.Module:
    net = nn.Linear(37, 11)
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return net.to(device)


def trained(net: nn.Module, device: str, replicas: Replicas | None = None) -> Tensor:
    """Its parameters after three steps, with the padding between them."""
    x = torch.linspace(-1, 1, 37).to(device)
    optimizer = zo.optim.CDRGE(net.parameters(), lr=2**-6, probes=16, replicas=replicas)
    for _ in range(3):
        optimizer.step(lambda: net(x).square().mean())
    return optimizer.arena.flat.cpu()


@each_device
def test_replicas(device: str, tmp_path: Path) -> None:
    alone = trained(net_on(device), device)
    with group_of_one(device, tmp_path):
        assert_same_bits(trained(net_on(device), device, Replicas(check_every=1, timeout=30.0)), alone)


@each_device
def test_fsdp(device: str, tmp_path: Path) -> None:
    alone = trained(net_on(device), device)
    with group_of_one(device, tmp_path):
        net = net_on(device)
        fully_shard(net, mesh=init_device_mesh(device, (1,)))
        assert_same_bits(trained(net, device), alone)


@each_device
def test_digest(device: str) -> None:
    theta = torch.linspace(-1, 1, 5000)
    assert digest(theta.to(device)) == digest(theta)
