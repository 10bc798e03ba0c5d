"""What a GPU day is made of: steps, each with a name and a record of how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """A check or a measure; its name begins with which.

    name: unique, "check." or "measure." and what.
    target: "module:function", called in a worker as function(device, **arguments). A check raises if what it looks at
        is wrong; what a step returns is recorded. Of a measure that is {"figures": {name: number}, ...}; "short" in it
        is a note for the table.
    seconds: it takes on an H200, estimated. group: steps of a group share a worker process.
    needs: checks that must have passed, or a figure would mean nothing. package: that must be installed.
    """

    name: str
    target: str
    seconds: float
    group: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    package: str | None = None

    @property
    def is_check(self) -> bool:
        return self.name.startswith("check.")

    @property
    def limit(self) -> float:
        """Seconds after which it counts as hanging: compilers and other machines are slower than an estimate."""
        return 60 + 3 * self.seconds


SETTLED = ("passed", "failed", "measured", "crashed")
"""Ways to end that the next run does not try again."""


@dataclass(frozen=True)
class Record:
    """How a step ended.

    status: "passed" or "failed" (a check), "measured" or "crashed" (a measure), "barred" (a measure whose check failed)
    or "left out". reason: why, where it did not pass or was not measured. trace: where it was raised.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        return self.status in SETTLED

    @property
    def words(self) -> str:
        if self.status in ("crashed", "barred"):
            return f"not measured: {self.reason}"
        return f"{self.status}: {self.reason}" if self.reason else self.status

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value or key == "status"}


OUT_OF_TIME = "out of time"
