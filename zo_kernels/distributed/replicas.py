"""Replicas: processes that hold the same parameters, share the work of a step and exchange its losses only.

Every replica makes the seeds of all probes itself, evaluates a share of them, and hears of the others' losses: 16 bytes
a central difference. The estimate and the update are then the same arithmetic everywhere, so the parameters stay the
same to the last bit, whatever the number of replicas.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ReplicaError, ReplicasDifferError, ReplicaStoppedError
from .partition import even_shares, shares_by_speed
from .process_group import finish

SPLITS = ("probes", "batch", "both")
"""What is shared out among replicas."""

_FINE, _FAILED, _STOPPED = range(3)

_HEADER = np.dtype([("status", "<i4"), ("seconds", "<f4"), ("step", "<i8"), ("digest", "<u8")])
"""What a replica says of itself in front of its losses: 24 bytes."""

_FADING = 0.99
"""By which the longest share is forgotten from exchange to exchange: the first one's compiled what others only run."""

_BLOCK = 1 << 20
"""Elements that the digest widens at a time."""


class Replicas:
    """The members of a process group of torch.distributed; every rank calls the same methods in the same order.

    group: None is the default process group.
    split: what a rank's share of a step is. "probes": some of the probes, on the whole batch. "batch": some of the
        micro-batches, at all probes; "both": some probes, of the first and the last perhaps a few micro-batches only,
        so that few probes and many micro-batches keep all ranks busy. The last two are for populations of several
        micro-batches (`zo_kernels.estimators.BatchPopulation`); other losses are shared by probes.
    balance: deals shares by the speed that the ranks had in the steps before. False deals them evenly.
    check_every: steps from one comparison of the ranks' parameters to the next, before the first step too.
    timeout: seconds to wait for another rank, beyond ten times the longest share of late. None: as long as the group's
        own timeout lets it.

    The losses are the same, bit for bit, for any number of ranks, split and balance. `rank` and `world_size` are
    those of the group; `device` is where its messages lie.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        split: str = "probes",
        balance: bool = False,
        check_every: int = 100,
        timeout: float | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if not isinstance(check_every, int) or check_every < 1:
            raise ValueError(f"check_every must be a positive integer, not {check_every!r}")
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be positive and finite, not {timeout}")
        self._group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self.split, self.balance, self.check_every, self.timeout = split, balance, check_every, timeout
        self._is_nccl = dist.get_backend(group) == dist.Backend.NCCL
        self.device = torch.device("cuda", torch.cuda.current_device()) if self._is_nccl else torch.device("cpu")
        self._speeds = [1.0] * self.world_size
        self._longest = 0.0
        self._step = 0
        self._digest = 0

    @staticmethod
    def present() -> Replicas | None:
        """Those of the default process group, if one of several processes is initialised."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        return Replicas()

    def begin_step(self, step: int, theta: Callable[[], int]) -> None:
        """Says which step the next exchanges are of, and with the first of them compares the parameters if it is time.

        theta: their digest.
        """
        self._step = step
        self._digest = theta() if step % self.check_every == 0 else 0

    def check_same(self, step: int, theta: Callable[[], int]) -> None:
        """Compares the parameters before a step, without any losses. Raises as `exchange`."""
        self._step, self._digest = step, theta()
        self.exchange(lambda mine: torch.zeros(0), 0, ())

    def exchange(self, evaluate: Callable[[slice], Tensor], count: int, shape: tuple[int, ...]) -> Tensor:
        """Rows 0 .. count - 1, of which each rank evaluates its share: float64 [count, *shape], in one all_gather.

        evaluate: the rows of a slice, [k, *shape], on this rank.

        Raises ReplicasDifferError if the ranks' parameters differ. If `evaluate` raises on one rank, all ranks raise,
        so that none waits for ever: that one its own error, the others ReplicaError; ReplicaStoppedError if it was
        KeyboardInterrupt. ReplicaError too if a rank is gone, does not come in time, or is at another step.
        """
        shares = shares_by_speed(count, self._speeds) if self.balance else even_shares(count, self.world_size)
        numbers = torch.Size(shape).numel()
        mine = shares[self.rank]
        losses = np.zeros(max(share.stop - share.start for share in shares) * numbers)
        header = np.zeros(1, _HEADER)
        header["step"], header["digest"] = self._step, self._digest
        error: BaseException | None = None
        started = time.perf_counter()
        try:
            if mine.stop > mine.start:
                rows = evaluate(mine).detach().to("cpu", torch.float64)
                if rows.shape != (mine.stop - mine.start, *shape):
                    raise ValueError(
                        f"{mine.stop - mine.start} rows of {shape} were asked for, not {tuple(rows.shape)}"
                    )
                losses[: rows.numel()] = rows.reshape(-1).numpy()
        except BaseException as raised:  # Ctrl-C too: the others must hear of it
            header["status"] = _STOPPED if isinstance(raised, KeyboardInterrupt) else _FAILED
            error = raised
        header["seconds"] = time.perf_counter() - started
        self._digest = 0
        try:
            received = self._all_gather(header.tobytes() + losses.tobytes())
        finally:
            if error is not None:
                raise error
        headers = np.concatenate([np.frombuffer(reply, _HEADER, count=1) for reply in received])
        self._refuse(headers)
        self._learn(headers["seconds"].tolist(), shares)
        rows_of = [
            np.frombuffer(reply, "<f8", (share.stop - share.start) * numbers, _HEADER.itemsize)
            for reply, share in zip(received, shares, strict=True)
        ]
        return torch.from_numpy(np.concatenate(rows_of)).view(count, *shape)

    def _refuse(self, headers: np.ndarray) -> None:
        for status, kind, what in (
            (_STOPPED, ReplicaStoppedError, "was interrupted"),
            (_FAILED, ReplicaError, "failed to evaluate its share: its own output says why"),
        ):
            ranks = np.flatnonzero(headers["status"] == status)
            if len(ranks):
                raise kind(f"rank {ranks[0]} {what}")
        steps, digests = headers["step"].tolist(), headers["digest"].tolist()
        if len(set(steps)) > 1:
            raise ReplicaError(f"the ranks are at different steps, {steps}: take the same steps on all of them")
        if len(set(digests)) > 1:
            raise ReplicasDifferError(self._step, digests)

    def _learn(self, seconds: Sequence[float], shares: Sequence[slice]) -> None:
        """What the shares took tells how to deal the next ones, and how long to wait for them."""
        self._longest = max(_FADING * self._longest, *seconds)
        counts = [share.stop - share.start for share in shares]
        if all(counts) and all(s > 0 for s in seconds):
            speeds = [count / s for count, s in zip(counts, seconds, strict=True)]
            mean = sum(speeds) / len(speeds)
            self._speeds = [(old + new / mean) / 2 for old, new in zip(self._speeds, speeds, strict=True)]

    def _all_gather(self, message: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        received = torch.empty(self.world_size, len(message), dtype=torch.uint8, device=self.device)
        try:
            if self._is_nccl:
                work = dist.all_gather(list(received.unbind()), mine, group=self._group, async_op=True)
            else:  # gloo's all_gather is a ring; this is as many bytes in one hop
                copies = mine.repeat(self.world_size, 1)
                work = dist.all_to_all_single(received, copies, group=self._group, async_op=True)
            patience = math.inf if self.timeout is None else self.timeout + 10 * self._longest
            finish(work, patience, self._group)
        except RuntimeError as error:
            raise ReplicaError(f"step {self._step} can't be taken: {str(error).splitlines()[0]}") from error
        return [bytes(reply.numpy()) for reply in received.cpu()]


def digest(*tensors: Tensor) -> int:
    """A 64-bit sum over the bits of contiguous tensors of one dtype that any single flipped bit changes.

    sum_j (2j + 1) w_j modulo 2^64, with w_j the bits of the j-th element of all as an integer: the factors are odd, so
    that 2^b times one of them is never 0.
    """
    number = 0
    total = 0
    for x in tensors:
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        words = x.detach().view(-1).view(integers)
        partial = torch.zeros((), dtype=torch.int64, device=x.device)
        for start in range(0, len(words), _BLOCK):
            block = words[start : start + _BLOCK].to(torch.int64)
            odd = 2 * torch.arange(number + start, number + start + len(block), device=x.device) + 1
            partial += (block * odd).sum()
        total += int(partial)
        number += len(words)
    return total % 2**64
