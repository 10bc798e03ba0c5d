"""Replicas: processes that hold the same parameters, divide the work of a step and exchange only its losses.

Every replica computes the seeds of all probes, evaluates its share of the probes, and receives the losses of the
others: 16 bytes per probe with central differences. Each replica then computes the same update from the same losses, so
the parameters stay bitwise equal for any number of replicas.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ReplicaError, ReplicasDifferError, ReplicaStoppedError, first_line, format_ranks
from .partition import split_by_speed, split_evenly
from .process_group import wait_for

SPLITS = ("probes", "batch", "both")
"""What a step is divided by: probes, micro-batches or both."""

_OK, _FAILED, _INTERRUPTED = range(3)

_HEADER = np.dtype([("status", "<i4"), ("seconds", "<f4"), ("step", "<i8"), ("digest", "<u8")])
"""What a replica sends ahead of its losses: 24 bytes."""

_DECAY = 0.99
"""Of the longest share time, per exchange: the first share may include compilation."""

_LAST_WORDS = 3.0
"""Seconds from the end of a rank's patience until the operation ends: time to find out who is absent."""

_BLOCK = 1 << 20
"""Elements that `digest` converts to int64 at a time."""


class Replicas:
    """The ranks of a process group as replicas. Every rank calls the same methods in the same order.

    group: A process group of `torch.distributed`. None is the default group.
    split: What a rank's share of a step consists of. "probes": some of the probes, each on the whole batch. "batch":
        some of the micro-batches, each at all probes. "both": some of the probes, each on all micro-batches. With the
        last two, neighboring ranks may divide a micro-batch or a probe between them, so that all ranks are busy even
        if there are few. They apply to populations of several micro-batches
        (`zo_kernels.estimators.BatchPopulation`). Other losses are always divided by probes.
    balance: Divides the work by the ranks' speeds in the steps before. False divides it evenly.
    check_every: Compares the parameters of all ranks every so many steps, and before the first.
    timeout: Seconds to wait for another rank, in addition to ten times the longest recent share. None waits until the
        group's own timeout.
    start_timeout: What `timeout` is until the first step is over, which may include compilation. None is `timeout`.

    The losses are bitwise the same for any number of ranks, any split and either balance. `rank` and `world_size` are
    those of the group. `device` is where its messages are stored.

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
        start_timeout: float | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if not isinstance(check_every, int) or check_every < 1:
            raise ValueError(f"check_every must be a positive integer, not {check_every!r}")
        for name, seconds in (("timeout", timeout), ("start_timeout", start_timeout)):
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"{name} must be positive and finite, not {seconds}")
        self._group = dist.group.WORLD if group is None else group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self.split, self.balance, self.check_every, self.timeout = split, balance, check_every, timeout
        self._is_nccl = dist.get_backend(group) == dist.Backend.NCCL
        self.device = torch.device("cuda", torch.cuda.current_device()) if self._is_nccl else torch.device("cpu")
        self._speeds = [1.0] * self.world_size
        self._longest = 0.0
        self._start_timeout = timeout if start_timeout is None else start_timeout
        self._steps_begun = 0
        self._step = 0
        self._digest = 0

    @staticmethod
    def find_default() -> Replicas | None:
        """The replicas of the default process group, or None if it has one process or is not initialized."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        return Replicas()

    def begin_step(self, step: int, compute_digest: Callable[[], int]) -> None:
        """Begins a step: the exchanges that follow belong to it.

        compute_digest: The digest of this rank's parameters. Every `check_every` steps it is sent with the first
            exchange, which compares the digests of all ranks.
        """
        self._steps_begun += 1
        self._step = step
        self._digest = compute_digest() if step % self.check_every == 0 else 0

    def check_same(self, step: int, compute_digest: Callable[[], int]) -> None:
        """Compares the parameters of all ranks before a step, at once. Raises what `exchange` raises."""
        self._step, self._digest = step, compute_digest()
        self.exchange(lambda mine: torch.zeros(0), 0, ())

    def exchange(self, evaluate: Callable[[slice], Tensor], count: int, shape: tuple[int, ...]) -> Tensor:
        """Returns `count` rows of losses, float64 [count, *shape], of which each rank evaluates its share.

        evaluate: Returns the rows of a slice, [k, *shape]. Called once on each rank that has a share.

        All ranks exchange their rows in one collective operation. If `evaluate` raises on one rank, that rank raises
        its own error and all others raise ReplicaError, or ReplicaStoppedError after a KeyboardInterrupt, so that none
        of them waits for it. Raises ReplicaError too if a rank has died, does not answer in time or is at another
        step, and ReplicasDifferError if the parameters of the ranks differ.
        """
        shares = split_by_speed(count, self._speeds) if self.balance else split_evenly(count, self.world_size)
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
                        f"expected losses of shape {(mine.stop - mine.start, *shape)}, not {tuple(rows.shape)}"
                    )
                losses[: rows.numel()] = rows.reshape(-1).numpy()
        except BaseException as raised:  # the others must hear of Ctrl-C too
            header["status"] = _INTERRUPTED if isinstance(raised, KeyboardInterrupt) else _FAILED
            error = raised
        header["seconds"] = time.perf_counter() - started
        self._digest = 0
        try:
            received = self._all_gather(header.tobytes() + losses.tobytes())
        finally:
            if error is not None:
                raise error
        headers = np.concatenate([np.frombuffer(reply, _HEADER, count=1) for reply in received])
        self._raise_failure(headers)
        self._update_speeds(headers["seconds"].tolist(), shares)
        rows_of = [
            np.frombuffer(reply, "<f8", (share.stop - share.start) * numbers, _HEADER.itemsize)
            for reply, share in zip(received, shares, strict=True)
        ]
        return torch.from_numpy(np.concatenate(rows_of)).view(count, *shape)

    def add_up(self, x: Tensor) -> None:
        """Replaces an int64 tensor by the sum of those of all ranks. To be called after `exchange`, on every rank.

        Raises ReplicaError if a rank has died or does not answer in time.
        """
        mine, group = x.to(self.device), self._group
        patience = self._patience()
        options = dist.AllreduceOptions()
        if math.isfinite(patience) and not self._is_nccl:  # as for `_send_to_all`
            options.timeout = timedelta(seconds=patience + _LAST_WORDS)
        assert group is not None
        self._finish(lambda: group.allreduce([mine], options), patience)
        x.copy_(mine)

    def _raise_failure(self, headers: np.ndarray) -> None:
        """Raises what these headers report, if anything."""
        seconds = headers["seconds"]
        odd = np.flatnonzero(~(np.isfinite(seconds) & (seconds >= 0)) | (headers["status"] > _INTERRUPTED))
        if len(odd):  # the shares and the patience of all ranks would follow from them
            raise ReplicaError(f"what {format_ranks(odd.tolist())} sent is no answer: use one version on all ranks")
        for status, kind, what in (
            (_INTERRUPTED, ReplicaStoppedError, "was interrupted"),
            (_FAILED, ReplicaError, "failed to evaluate its share: see its output"),
        ):
            ranks = np.flatnonzero(headers["status"] == status)
            if len(ranks):
                raise kind(f"rank {ranks[0]} {what}")
        steps, digests = headers["step"].tolist(), headers["digest"].tolist()
        if len(set(steps)) > 1:
            raise ReplicaError(f"the ranks are at different steps, {steps}: take the same steps on every rank")
        if len(set(digests)) > 1:
            raise ReplicasDifferError(self._step, digests)

    def _update_speeds(self, seconds: Sequence[float], shares: Sequence[slice]) -> None:
        """Learns from the seconds of each share how to divide the next exchange, and how long to wait for it."""
        self._longest = max(_DECAY * self._longest, *seconds)
        counts = [share.stop - share.start for share in shares]
        if all(counts) and all(s > 0 for s in seconds):
            speeds = [count / s for count, s in zip(counts, seconds, strict=True)]
            mean = sum(speeds) / len(speeds)
            self._speeds = [(old + new / mean) / 2 for old, new in zip(self._speeds, speeds, strict=True)]

    def _all_gather(self, message: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        received = torch.empty(self.world_size, len(message), dtype=torch.uint8, device=self.device)
        patience = self._patience()

        def start() -> dist.Work:
            if self._is_nccl:
                return dist.all_gather(list(received.unbind()), mine, group=self._group, async_op=True)
            return self._send_to_all(mine, received, patience)

        self._finish(start, patience)
        return [bytes(reply.numpy()) for reply in received.cpu()]

    def _patience(self) -> float:
        """Seconds to wait for the other ranks."""
        timeout = self.timeout if self._steps_begun > 1 else self._start_timeout
        return math.inf if timeout is None else timeout + 10 * self._longest

    def _finish(self, start: Callable[[], dist.Work], patience: float) -> None:
        """Starts a collective operation and waits until it is over. Raises ReplicaError if it fails."""
        try:
            wait_for(start(), patience, self._group)
        except RuntimeError as error:
            raise ReplicaError(f"step {self._step} can't be taken: {first_line(error)}") from error

    def _send_to_all(self, mine: Tensor, received: Tensor, patience: float) -> dist.Work:
        """Starts an all_gather on gloo, whose own goes round a ring: this sends as many bytes in one hop.

        The operation ends itself soon after the patience has run out. Otherwise it would run until the timeout of the
        group, and the process could not exit before: gloo waits for its operations.
        """
        options = dist.AllToAllOptions()
        if math.isfinite(patience):
            options.timeout = timedelta(seconds=patience + _LAST_WORDS)
        copies = mine.repeat(self.world_size, 1)
        assert self._group is not None
        return self._group.alltoall_base(received, copies, [], [], options)


def digest(*tensors: Tensor) -> int:
    """Returns a 64-bit checksum of tensors, which changes if any single bit flips.

    The checksum is sum_j (2j + 1) w_j modulo 2^64, where w_j is the j-th element's bits as an integer. The factors are
    odd, so a flipped bit b changes it by 2^b times an odd number, which is not 0 modulo 2^64.
    """
    number = 0
    total = 0
    for x in tensors:
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        words = x.detach().reshape(-1).view(integers)
        partial = torch.zeros((), dtype=torch.int64, device=x.device)
        for start in range(0, len(words), _BLOCK):
            block = words[start : start + _BLOCK].to(torch.int64)
            odd = 2 * torch.arange(number + start, number + start + len(block), device=x.device) + 1
            partial += (block * odd).sum()
        total += int(partial)
        number += len(words)
    return total % 2**64
