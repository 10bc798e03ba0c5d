"""The end of a GPU day: what failed, the table, and the file."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from .bars import Bar
from .steps import Record, Step


def failures(records: Mapping[str, Record]) -> list[str]:
    """One line per failed check."""
    return [f"FAILED {name}: {record.reason}" for name, record in records.items() if record.status == "failed"]


def table(judged: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| figure | measured | bar | |", "|---|---|---|---|"]
    for entry in judged:
        measured = ""
        if "measured" in entry:
            measured = f"{shown(entry['measured'])} {entry['unit']}".strip()
            measured += f" ({entry['short']})" if entry["short"] else ""
        lines.append(f"| {entry['text']} | {measured} | {entry['bar']} | {entry['verdict']} |")
    return "\n".join(lines)


def shown(figure: float) -> str:
    """Three digits, of what is missing to 1 where that is little."""
    return f"1 - {1 - figure:.2g}" if 0.999 < figure < 1 else f"{figure:.3g}"


def judge(bars: Sequence[Bar], records: Mapping[str, Record], device: str) -> list[dict[str, Any]]:
    """A rehearsal's figures are not judged."""
    judged = [bar.judge(records, device) for bar in bars]
    if device == "cpu":
        judged = [entry if "measured" not in entry else {**entry, "verdict": "rehearsed"} for entry in judged]
    return judged


def content(
    machine: Mapping[str, Any], judged: Sequence[Mapping[str, Any]], records: Mapping[str, Record]
) -> dict[str, Any]:
    """Of the results file."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": "python -m bench.gpu",
        "machine": dict(machine),
        "bars": list(judged),
        "steps": {name: record.as_json() for name, record in records.items()},
    }


def exit_code(steps: Sequence[Step], records: Mapping[str, Record]) -> int:
    """Of these steps: 1 if a check failed, 2 if one was left out or not measured, else 0."""
    statuses = {records[step.name].status if step.name in records else "left out" for step in steps}
    if "failed" in statuses:
        return 1
    return 0 if statuses <= {"passed", "measured"} else 2
