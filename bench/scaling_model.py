"""A step on W ranks: its seconds by formula, and by a simulation of every rank and message.

The formula knows averages; the simulation draws each rank's speed in each step and each failure from a seed, and lets
ranks run ahead of each other as far as the messages let them. Where nothing is random the two agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

HEADER, PAIR = 24, 16
"""Bytes of a message: before the losses of a rank, and the two losses of a probe."""


@dataclass(frozen=True)
class Link:
    """How ranks are joined. near, far: seconds from one rank to another, of one node and of two; bandwidth: bytes/s.

    setup: seconds a rank spends on an exchange whatever its size; post: seconds a rank spends on each further message
    where it sends to all at once.
    algorithm: "ring" (W - 1 hops one after the other), "bruck" (log2 W rounds, the messages doubling) or "direct"
    (every rank sends to every other).
    """

    name: str
    setup: float
    near: float
    far: float
    bandwidth: float
    per_node: int
    algorithm: str = "ring"
    post: float = 0.0


@dataclass(frozen=True)
class Work:
    """A step without its exchange, on one rank.

    probe: seconds of a probe, its two losses on the whole batch; update: seconds of the pass over the parameters, which
    every rank takes whole, for each probe; fixed: seconds of a step beside them; digest: seconds, each digest_every
    steps; jitter: standard deviation of the logarithm of a rank's seconds for its probes.
    """

    name: str
    probes: int
    probe: float
    update: float
    fixed: float = 0.0
    digest: float = 0.0
    digest_every: int = 100
    jitter: float = 0.0

    @property
    def same(self) -> float:
        """Seconds of a step that do not depend on the number of ranks."""
        return self.fixed + self.probes * self.update + self.digest / self.digest_every


@dataclass(frozen=True)
class Failures:
    """between: mean seconds between the failures of one rank; restart: seconds to notice one and be back.

    The rows since the checkpoint, one in checkpoint_every steps, are then replayed: an update each.
    """

    between: float = math.inf
    restart: float = 0.0
    checkpoint_every: int = 100

    def replay(self, work: Work, rows: float) -> float:
        return rows * (work.fixed + work.probes * work.update)


def shares(probes: int, ranks: int, batch: bool) -> tuple[int, int]:
    """Probes of a rank, and ranks that share the batch of each: more than one only with the batch axis and W > n."""
    parts = max(1, ranks // probes) if batch else 1
    return math.ceil(probes / (ranks // parts)), parts


def message(probes: int, ranks: int, batch: bool = False) -> int:
    """Bytes that a rank tells the others."""
    return HEADER + PAIR * shares(probes, ranks, batch)[0]


def sent(probes: int, ranks: int, batch: bool = False) -> int:
    """Bytes that a rank sends in a step, whichever the algorithm."""
    return (ranks - 1) * message(probes, ranks, batch)


def compute(work: Work, ranks: int, batch: bool = False) -> float:
    """Seconds of a rank's probes, at its usual speed."""
    share, parts = shares(work.probes, ranks, batch)
    return share * work.probe / parts


def exchange(link: Link, ranks: int, size: int) -> float:
    """Seconds of an all_gather of messages of `size` bytes to which all come at once."""
    if ranks == 1:
        return 0.0
    nodes = math.ceil(ranks / link.per_node)
    latency = link.far if nodes > 1 else link.near
    moved = (ranks - 1) * size / link.bandwidth
    if link.algorithm == "direct":
        return link.setup + latency + (ranks - 1) * link.post + moved
    if link.algorithm == "bruck":
        return link.setup + math.ceil(math.log2(ranks)) * latency + moved
    if link.algorithm != "ring":
        raise ValueError(f"there is no algorithm {link.algorithm!r}: give ring, bruck or direct")
    far = nodes if nodes > 1 else 0
    around = (ranks - far) * link.near + far * link.far
    return link.setup + around * (ranks - 1) / ranks + moved  # a message passes all links but one


def slowest(jitter: float, ranks: int) -> float:
    """The mean over steps of the slowest rank's seconds, over those of a rank at its usual speed."""
    if jitter == 0:
        return 1.0
    normal, pieces = NormalDist(), 2048
    # the slowest of W is the usual distribution's quantile of U^(1/W)
    quantiles = (normal.inv_cdf(((i + 0.5) / pieces) ** (1 / ranks)) for i in range(pieces))
    return math.fsum(math.exp(jitter * z) for z in quantiles) / pieces


def step(work: Work, link: Link, ranks: int, batch: bool = False) -> float:
    """Seconds of a step in which nothing fails."""
    size = message(work.probes, ranks, batch)
    return compute(work, ranks, batch) * slowest(work.jitter, ranks) + exchange(link, ranks, size) + work.same


def goodput(work: Work, link: Link, ranks: int, failures: Failures, batch: bool = False) -> float:
    """The part of the time that goes into steps that count: 1 where nothing fails."""
    seconds = step(work, link, ranks, batch)
    rate = ranks / failures.between
    if rate == 0:
        return 1.0
    if rate * seconds > 700:  # beyond what exp holds
        return 0.0
    down = failures.restart + failures.replay(work, (failures.checkpoint_every - 1) / 2)
    return seconds / ((1 / rate + down) * math.expm1(rate * seconds))


def simulate(
    work: Work,
    link: Link,
    ranks: int,
    steps: int,
    *,
    batch: bool = False,
    failures: Failures | None = None,
    seed: int = 0,
) -> float:
    """Seconds of `steps` steps. A failure takes the step under way; what the journal has is not computed again."""
    failures = failures or Failures()
    random = np.random.default_rng(seed)
    usual, size = compute(work, ranks, batch), message(work.probes, ranks, batch)
    hops = _Hops(link, ranks, size)
    free = np.zeros(ranks)
    healthy = random.exponential(failures.between / ranks) if math.isfinite(failures.between) else math.inf
    for taken in range(steps):
        while True:
            arrived = free + usual * random.lognormal(0.0, work.jitter, ranks)
            done = hops.gathered(arrived) + work.fixed + work.probes * work.update
            if taken % work.digest_every == 0:
                done += work.digest
            if done.max() <= healthy:
                break
            back = healthy + failures.restart + failures.replay(work, taken % failures.checkpoint_every)
            free = np.full(ranks, back)
            healthy = back + random.exponential(failures.between / ranks)
        free = done
    return float(free.max())


class _Hops:
    """The messages of one exchange among ranks that come to it at different times."""

    def __init__(self, link: Link, ranks: int, size: int) -> None:
        self._link, self._ranks = link, ranks
        self._node = np.arange(ranks) // link.per_node
        self._moving = size / link.bandwidth

    def gathered(self, arrived: NDArray[np.float64]) -> NDArray[np.float64]:
        """When each rank has all messages."""
        if self._ranks == 1:
            return arrived
        ready = arrived + self._link.setup
        return {"ring": self._ring, "bruck": self._bruck, "direct": self._direct}[self._link.algorithm](ready)

    def _latency(self, distance: int) -> NDArray[np.float64]:
        """From the rank `distance` before each one."""
        same = self._node == np.roll(self._node, distance)
        return np.where(same, self._link.near, self._link.far)

    def _ring(self, ready: NDArray[np.float64]) -> NDArray[np.float64]:
        """Every message goes round. A rank that comes late holds up the others' as long as its own, which is later."""
        heard, all_heard = ready, ready.copy()
        hop = self._latency(1) + self._moving
        for _ in range(self._ranks - 1):
            heard = np.roll(heard, 1) + hop
            np.maximum(all_heard, heard, out=all_heard)
        return all_heard

    def _bruck(self, ready: NDArray[np.float64]) -> NDArray[np.float64]:
        """In each round all that is known goes to the rank 1, 2, 4, ... further on; across nodes, all wait for far."""
        latency = self._link.far if self._node[-1] else self._link.near
        distance = 1
        while distance < self._ranks:
            moving = min(distance, self._ranks - distance) * self._moving
            ready = np.maximum(ready, np.roll(ready, distance)) + latency + moving
            distance *= 2
        return ready

    def _direct(self, ready: NDArray[np.float64]) -> NDArray[np.float64]:
        """Messages leave a rank one after the other, for the next rank first; the last one has the longest way."""
        latency = self._link.far if self._node[-1] else self._link.near
        heard = ready.copy()
        for distance in range(1, self._ranks):
            leaves = ready + distance * (self._link.post + self._moving)
            np.maximum(heard, np.roll(leaves, distance) + latency, out=heard)
        return heard


def at_share(work: Work, link: Link, share: float, batch: bool = False, most: int = 100_000) -> int | None:
    """The least number of ranks from which on the exchange takes that share of a step; None if it is above `most`.

    Of ranks that are alike: jitter would hide the exchange behind the wait for the slowest.
    """
    work, found = replace(work, jitter=0.0), None
    for ranks in range(most, 1, -1):
        if exchange(link, ranks, message(work.probes, ranks, batch)) < share * step(work, link, ranks, batch):
            return found
        found = ranks
    return found
