"""Replicas: processes that hold the same parameters, share the probes of a step and exchange its losses only.

Every replica makes the seeds of all probes itself, evaluates a share of them, and hears of the others' losses: 16 bytes
a central difference. The estimate and the update are then the same arithmetic everywhere, so the parameters stay the
same to the last bit, whatever the number of replicas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ReplicaError
from .estimators import Evaluator

_BLOCK = 1 << 20
"""Elements that the digest widens at a time."""


class Replicas:
    """The members of a process group of torch.distributed; every rank calls the same methods in the same order."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        on_gpu = dist.get_backend(group) == dist.Backend.NCCL
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @staticmethod
    def present() -> Replicas | None:
        """Those of the default process group, if one of several processes is initialised."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        return Replicas()

    def exchange(self, evaluate: Callable[[slice], Tensor], count: int, shape: tuple[int, ...]) -> Tensor:
        """Rows 0 .. count - 1, of which each rank evaluates its share: float64 [count, *shape], in one all_gather.

        evaluate: the rows of a slice, [k, *shape], on this rank. If it raises on one rank, all ranks raise: that one
        its own error, the others ReplicaError, so that none waits for ever.
        """
        most = -(-count // self.world_size)
        mine = slice(min(self.rank * most, count), min((self.rank + 1) * most, count))
        numbers = torch.Size(shape).numel()
        message = torch.zeros(1 + most * numbers, dtype=torch.float64)
        error: BaseException | None = None
        try:
            if mine.stop > mine.start:
                rows = evaluate(mine).detach().to("cpu", torch.float64).reshape(-1)
                message[1 : 1 + len(rows)] = rows
        except BaseException as raised:  # Ctrl-C too: the others must hear of it
            message[0], error = 1.0, raised
        received = self._all_gather(message)
        if error is not None:
            raise error
        failed = [rank for rank, reply in enumerate(received) if reply[0] != 0]
        if failed:
            raise ReplicaError(f"rank {failed[0]} failed to evaluate its probes: its own output says why")
        rows = torch.cat([reply[1:] for reply in received])[: count * numbers]
        return rows.view(count, *shape)

    def check_same(self, theta: Tensor, step: int) -> None:
        """Raises ReplicaError, naming the ranks, if the parameters are not the same bits on all of them."""
        mine = torch.tensor([digest(theta)], dtype=torch.int64)
        digests = [int(reply) for reply in self._all_gather(mine)]
        usual, _ = Counter(digests).most_common(1)[0]
        others = [str(rank) for rank, found in enumerate(digests) if found != usual]
        if others:
            ranks = f"rank {others[0]} holds" if len(others) == 1 else f"ranks {', '.join(others)} hold"
            raise ReplicaError(
                f"{ranks} other parameters than the rest before step {step}: build the model from the same seed on "
                "every rank, and change parameters on all of them or none"
            )

    def _all_gather(self, message: Tensor) -> list[Tensor]:
        mine = message.to(self._device)
        received = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(received, mine, group=self._group)
        return [reply.cpu() for reply in received]


class SharedEvaluator(Evaluator):
    """An evaluator whose points are shared out among replicas; its losses are the same on all of them."""

    def __init__(self, evaluator: Evaluator, replicas: Replicas) -> None:
        self._own = evaluator
        self._replicas = replicas

    def pairs(self, seeds: Tensor, eps: float) -> Tensor:
        return self._replicas.exchange(lambda mine: self._own.pairs(seeds[mine], eps), len(seeds), (2,))

    def ahead(self, seeds: Tensor, eps: float) -> Tensor:
        return self._replicas.exchange(lambda mine: self._own.ahead(seeds[mine], eps), len(seeds), ())

    def clean(self) -> float:
        def alone(mine: slice) -> Tensor:
            return torch.tensor([self._own.clean()], dtype=torch.float64)

        return float(self._replicas.exchange(alone, 1, ()))

    def corners(self, seeds: Tensor, others: Tensor, eps: float) -> Tensor:
        return self._replicas.exchange(
            lambda mine: self._own.corners(seeds[mine], others[mine], eps), len(seeds), (2, 2)
        )


def digest(x: Tensor) -> int:
    """A 64-bit sum over the bits of a contiguous tensor that any single flipped bit changes.

    sum_j (2j + 1) w_j modulo 2^64, with w_j the j-th element's bits as an integer: the factors are odd, so that 2^b
    times one of them is never 0.
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    words = x.detach().view(-1).view(integers)
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].to(torch.int64)
        odd = 2 * torch.arange(start, start + len(block), device=x.device) + 1
        total += (block * odd).sum()
    return int(total)
