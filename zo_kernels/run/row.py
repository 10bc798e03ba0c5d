"""One step as a row of the journal: its columns, and the digest that covers them and all rows before."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_DIGEST_BYTES = 8
_GROUP_BYTES = 32
_MOST_STEPS = 1 << 62
_NUMBERS = struct.Struct("<qddQdd").pack


class Group(NamedTuple):
    """The hyper-parameters of a parameter group at a step. sign: 1 if losses are minimised, -1 if maximised."""

    lr: float
    eps: float
    weight_decay: float
    sign: float


class Row(NamedTuple):
    """One step of a run.

    step: number of the step, from 0. lr, eps: learning rate and eps of the step. seed: the run seed, in [0, 2^64).
    coeffs: float32 [n], the coefficients in the order of the step's probes, NaN for a probe left out; empty for a
    solver without probes. loss: mean training loss in nats. seconds: training time so far, without validation. groups:
    of each parameter group of the optimizer, where lr and eps do not say it all; else empty.
    """

    step: int
    lr: float
    eps: float
    seed: int
    coeffs: npt.NDArray[np.float32]
    loss: float
    seconds: float
    groups: tuple[Group, ...] = ()

    def digest(self, previous: bytes) -> bytes:
        """Digest of this row and all rows before it, given theirs."""
        return self.columns(previous)[-1]

    def group_bytes(self) -> bytes:
        """The numbers of the groups, float64."""
        return np.array(self.groups, "<f8").tobytes()

    def columns(self, previous: bytes) -> tuple[int, float, float, int, bytes, float, float, bytes]:
        """The columns of the table of steps. The last one is the digest, given that of the rows before."""
        step, lr, eps, seed, values, loss, seconds, groups = self
        coeffs = values.astype("<f4", copy=False).tobytes()
        numbers = _NUMBERS(step, lr + 0.0, eps + 0.0, seed, _plain(loss), seconds + 0.0)  # SQLite has no -0.0
        covered = previous + numbers + coeffs + (self.group_bytes() if groups else b"")
        digest = hashlib.blake2b(covered, digest_size=_DIGEST_BYTES).digest()
        seed = seed - (1 << 64) if seed >= 1 << 63 else seed  # SQLite's integers are signed
        return step, lr, eps, seed, coeffs, loss, seconds, digest


def as_row(columns: Sequence[Any], groups: Any = None) -> Row | None:
    """The row with these columns, or None if one of them has a type that is never written.

    groups: the bytes of its groups; None if it has none.
    """
    step, lr, eps, seed, coeffs, loss, seconds = columns
    numbers = isinstance(seed, int) and all(isinstance(x, float) for x in (lr, eps, seconds))
    if not (numbers and is_step(step) and isinstance(loss, (float, type(None)))):
        return None
    if not isinstance(coeffs, bytes) or len(coeffs) % 4:
        return None
    array = np.frombuffer(coeffs, dtype="<f4").astype(np.float32)
    found: tuple[Group, ...] = ()
    if groups is not None:
        if not isinstance(groups, bytes) or not groups or len(groups) % _GROUP_BYTES:
            return None
        found = tuple(Group(*numbers) for numbers in np.frombuffer(groups, "<f8").reshape(-1, 4).tolist())
    return Row(step, lr, eps, seed % (1 << 64), array, as_float(loss), seconds, found)


def digest_of(content: bytes) -> bytes:
    """Digest of these bytes."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def score_digest(previous: bytes, step: int, name: str, loss: float, accuracy: float) -> bytes:
    """Digest of a score and all scores before it, given theirs."""
    return digest_of(previous + struct.pack("<qdd", step, _plain(loss), _plain(accuracy)) + name.encode())


def is_step(value: object) -> bool:
    """Whether a value read from the journal can be the number of a step."""
    return isinstance(value, int) and 0 <= value < _MOST_STEPS


def as_float(value: float | None) -> float:
    """Turns NULL into NaN, which SQLite can't store."""
    return math.nan if value is None else value


def _plain(value: float) -> float:
    """The number that comes back from SQLite, which has no -0.0, and NULL for any NaN."""
    return value + 0.0 if value == value else math.nan
