"""Does the steps, in order, within the time there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .journal import ROOT, Journal
from .steps import OUT_OF_TIME, Record, Step
from .worker import Reply, Worker

RESERVE = 5.0
"""Seconds of the budget that no step may use: for the start of a worker, the table and the file."""


class Workers:
    """The worker of the moment: a new one for each group of steps, and after each failure."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._group: str | None = None

    def call(self, group: str | None, target: str, arguments: Mapping[str, Any], seconds: float) -> Reply:
        """group: None for what is done before the first group, whose worker then goes on."""
        if self._group not in (None, group):
            self.close()
        self._group = group
        self._worker = self._worker or Worker(ROOT)
        reply = self._worker.call(target, arguments, seconds)
        if reply.failure:
            self.close()
        return reply

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def run(
    steps: Sequence[Step],
    device: str,
    journal: Journal,
    missing: Mapping[str, str],
    workers: Workers,
    deadline: float,
    say: Callable[[str], None],
) -> None:
    """Does the steps that the journal has no settled record of, and notes each in it when it ends.

    missing: packages that are not there, with a sentence. deadline: of time.monotonic().
    """
    for step in steps:
        if journal.settled(step.name):
            continue
        record = _hindrance(step, journal, missing, deadline) or _do(step, device, workers, deadline)
        journal.note(step.name, record)
        took = f" ({record.seconds:.1f} s)" if record.seconds else ""
        say(f"{step.name:<40} {record.words}{took}")


def _hindrance(step: Step, journal: Journal, missing: Mapping[str, str], deadline: float) -> Record | None:
    """Why this step can't be done now, None if it can."""
    if step.package is not None and step.package in missing:
        return Record("left out", missing[step.package])
    for name in step.needs:
        check = journal.records.get(name)
        if check is None or check.status == "left out":
            return Record("left out", check.reason if check else f"{name} was not done")
        if check.status != "passed":
            return Record("barred", f"{name} failed")
    if time.monotonic() + step.seconds + RESERVE > deadline:
        return Record("left out", OUT_OF_TIME)
    return None


def _do(step: Step, device: str, workers: Workers, deadline: float) -> Record:
    start = time.monotonic()
    left = deadline - start - RESERVE
    reply = workers.call(step.group, step.target, {"device": device, **step.arguments}, min(step.limit, left))
    seconds = round(time.monotonic() - start, 2)
    if reply.timed_out and left < step.limit:
        return Record("left out", OUT_OF_TIME, seconds)
    if reply.failure:
        return Record("failed" if step.is_check else "crashed", reply.failure, seconds, trace=reply.trace)
    return Record("passed" if step.is_check else "measured", "", seconds, reply.result or {})
