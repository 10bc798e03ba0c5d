"""A small model, and the ways to shard it."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.func import functional_call


class Net(nn.Module):
    """Numbers of rows that are no multiples of 2, 3 or 4, and two rows that leave a third process without any."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 40)
        self.hidden = nn.Linear(40, 131)
        self.norm = nn.LayerNorm(131)
        self.output = nn.Linear(131, 7, bias=False)
        self.scale = nn.Parameter(torch.ones(2))
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.hidden(self.embedding(tokens))))
        return self.output(hidden) * self.scale[0] + self.scale[1]


def batch(part: int = 0) -> tuple[Tensor, Tensor]:
    tokens, targets = torch.randint(7, (2, 6), generator=torch.Generator().manual_seed(part))
    return tokens, targets


def shard_model(layout: str, net: Net) -> Callable[[Tensor], Tensor]:
    """Shards the model in place; its forward pass."""
    ranks = dist.get_world_size() if layout != "plain" else 1
    if layout == "plain":
        return net
    if layout == "hsdp":
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    if layout in ("fsdp", "hsdp", "fsdp resharded"):
        reshard = {"reshard_after_forward": True} if layout == "fsdp resharded" else {}
        for module in (net.hidden, net.output, net):
            fully_shard(module, mesh=mesh, **reshard)
        return net
    for module in net.modules():  # "dtensor", and "mixed" with some parameters that are not
        for name, p in list(module.named_parameters(recurse=False)):
            if layout == "mixed" and p.dim() == 1:
                continue
            placements = [Replicate() if p.dim() == 1 else Shard(0)]
            module.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, placements)))
    return lambda tokens: functional_call(net, {name: gather(p) for name, p in net.named_parameters()}, (tokens,))


def gather(p: Tensor) -> Tensor:
    with torch.no_grad():
        return p.full_tensor() if isinstance(p, DTensor) else p.detach()


def make_loss(forward: Callable[[Tensor], Tensor], part: int = 0) -> Callable[[], Tensor]:
    tokens, targets = batch(part)
    return lambda: nn.functional.cross_entropy(forward(tokens).double(), targets)


def read_bits(net: Net) -> bytes:
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return b"".join(gather(p).reshape(-1).view(torch.uint8).numpy().tobytes() for p in net.parameters())
