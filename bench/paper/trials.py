"""Trials that can be stopped and resumed: each is found by its settings in a JSON file, and stored when it is done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import machine, write_text

Settings = Mapping[str, Any]

_IDLE = 0.3
"""Cores that others may keep busy while times are measured."""


@dataclass
class Trials:
    """The trials of one table or figure.

    path: the JSON file. only: settings that a trial must have to be run, as text; other trials are left as they are.
    done: the trials, each with its settings, what it has found and on which machine.
    waiting: settings of those whose times could not be measured, because the machine was busy.
    """

    path: Path
    command: str
    only: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self.waiting: list[Settings] = []
        self._here = machine()
        self._read()

    def _read(self) -> None:
        """Adds what the file has and this does not: another process may have written it meanwhile."""
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.done += [each for each in stored.get("trials", []) if self.find(each["settings"]) is None]
        waiting = [*self.waiting, *stored.get("not_yet_measured", [])]
        self.waiting = [each for i, each in enumerate(waiting) if self.find(each) is None and each not in waiting[:i]]

    def run(self, settings: Settings, measure: Callable[[], dict[str, Any]], *, timed: bool = False) -> None:
        """Measures a trial unless that was done before, and stores what `measure` returns.

        timed: whether the trial has times, which are measured on an idle machine only.
        """
        if self.find(settings) is not None or not self._is_wanted(settings):
            return
        if timed and (busy := cores_of_others()) > _IDLE:
            print(f"not yet measured, for others use {busy:.1f} cores: {_words(settings)}", flush=True)
            self.waiting.append(settings)
            self.write()
            return
        load = os.getloadavg()[0]
        started = time.perf_counter()
        found = measure()
        where = {key: self._here[key] for key in ("date", "commit", "processor", "isa")}
        self.done.append({"settings": dict(settings), "found": found, "machine": {**where, "load": round(load, 1)}})
        self.write()
        print(f"{_words(settings)}: {time.perf_counter() - started:.0f} s", flush=True)

    def find(self, settings: Settings) -> dict[str, Any] | None:
        """What a trial has found, or None."""
        return next((trial["found"] for trial in self.done if trial["settings"] == settings), None)

    def select(self, **settings: Any) -> list[dict[str, Any]]:
        """The trials that have these settings."""
        return [trial for trial in self.done if settings.items() <= trial["settings"].items()]

    def write(self) -> None:
        """One line for each trial, so that a version control system shows what is new."""
        self._read()
        head = {"machine": self._here, "command": self.command, "not_yet_measured": self.waiting}
        lines = ",\n  ".join(json.dumps(trial) for trial in self.done)
        text = json.dumps(head, indent=1).removesuffix("\n}")
        write_text(self.path, f'{text},\n "trials": [\n  {lines}\n ]\n}}\n')

    def _is_wanted(self, settings: Settings) -> bool:
        return all(key in settings and str(settings[key]) == value for key, value in self.only.items())


def cores_of_others(seconds: float = 1.0) -> float:
    """Cores that all processes keep busy while this one sleeps."""
    before = _busy_seconds()
    time.sleep(seconds)
    return (_busy_seconds() - before) / seconds


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _words(settings: Settings) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
