"""What the process of `test_a_group_of_one` does."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import zo_kernels as zo
from tests.cases import assert_same_bits
from tests.flat import flat
from zo_kernels.distributed.replicas import Replicas, digest


def train_in_a_group_of_one(by: str, device: str, file: str) -> None:
    """Checks that steps in a group of one are those of no group, and that digests do not depend on the device."""

    def train() -> Tensor:
        torch.manual_seed(0)
        net, replicas = nn.Linear(37, 11).to(device), None
        if dist.is_initialized() and by == "fsdp":
            fully_shard(net, mesh=init_device_mesh(device, (1,)))
        elif dist.is_initialized():
            replicas = Replicas(check_every=1, timeout=30.0)
        x = torch.linspace(-1, 1, 37).to(device)
        optimizer = zo.optim.CDRGE(net.parameters(), lr=2**-6, probes=16, replicas=replicas)
        for _ in range(3):
            optimizer.step(lambda: net(x).square().mean())
        return flat(optimizer.space).cpu()  # with the padding between parameters

    alone, store = train(), dist.FileStore(file, 1)
    assert digest(alone.to(device)) == digest(alone)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        assert_same_bits(train(), alone)
    finally:
        dist.destroy_process_group()
