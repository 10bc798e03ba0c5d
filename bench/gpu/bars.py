"""What a GPU day is judged by: figures, where they come from and what they should be."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from .sizes import SIZES
from .steps import Record


@dataclass(frozen=True)
class Bar:
    """steps: a pattern of the measures that have `figure`; {device} stands for the backend of the device. Of several
        the one counts whose figure `by` is best.

    by defaults to the figure itself; best is lowest for "seconds" and for an `at_most`, else highest. within: measures
    whose "peak GB" is at most this come before others.
    """

    text: str
    steps: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None
    by: str | None = None
    within: float | None = None
    unit: str = ""

    def judge(self, records: Mapping[str, Record], device: str) -> dict[str, Any]:
        """{"text", "unit", "bar", "verdict"}, and if there is a figure "measured", "step" and "short", a note."""
        bar = "" if self.goal is None else f"{'at least' if self.at_least is not None else 'at most'} {self.goal:g}"
        judged: dict[str, Any] = {"text": self.text, "unit": self.unit, "bar": bar}
        pattern = self.steps.format(device=device)
        sources = {name: record for name, record in records.items() if fnmatch(name, pattern)}
        figures = {name: record.result.get("figures", {}) for name, record in sources.items()}
        by = self.by or self.figure
        having = [name for name, some in figures.items() if by in some and self.figure in some]
        if not having:
            reasons = sorted({record.reason or "not on this device" for record in sources.values()})
            return {**judged, "verdict": f"not measured: {'; '.join(reasons) or 'not done'}"}
        if self.within is not None:
            having = [name for name in having if figures[name].get("peak GB", math.inf) <= self.within] or having
        lowest = by == "seconds" or (by == self.figure and self.at_most is not None)
        best = (min if lowest else max)(having, key=lambda name: figures[name][by])
        measured = figures[best][self.figure]
        found = {"measured": measured, "step": best, "short": records[best].result.get("short", "")}
        return {**judged, **found, "verdict": self._verdict(measured)}

    @property
    def goal(self) -> float | None:
        return self.at_least if self.at_least is not None else self.at_most

    def _verdict(self, measured: float) -> str:
        if self.goal is None:
            return ""
        reaches: Callable[[float, float], bool] = operator.ge if self.at_least is not None else operator.le
        return "met" if reaches(measured, self.goal) else "MISSED"


def _bars() -> list[Bar]:
    bars = [
        Bar(
            f"apply_probe_, {dtype}, 1G elements, over a copy",
            "measure.ops.{device}.apply",
            f"of a copy, {dtype}, 1G",
            0.9,
        )
        for dtype in ("float32", "bfloat16")
    ]
    bars += [
        Bar(
            "accumulate_probes_, 512 seeds, 1G",
            "measure.ops.{device}.accumulate",
            "rate, 512",
            5e12,
            unit="element-seeds/s",
        ),
        Bar("apply_probe_ over usual torch", "measure.ops.{device}.usual", "apply", 8, unit="x faster"),
        Bar("accumulate_probes_ over usual torch", "measure.ops.{device}.usual", "accumulate", 200, unit="x faster"),
        Bar("population over one call a probe and sign", "measure.population.*", "times faster", 20, unit="x faster"),
        Bar("correlation of bfloat16 L+ - L-, eps 2^-10", "measure.correlation.kernel", "correlation", 0.99),
    ]
    for name, size in SIZES.items():
        steps, of = f"measure.step.{name}.*", f"{name} parameters"
        most = None if size.most_seconds is None else round(size.most_seconds, 3)
        gb = size.paper_gb
        bars += [
            Bar(f"step of 96 probes, {of}", steps, "seconds", at_most=most, by="seconds", within=gb, unit="s"),
            Bar(f"peak memory of it, {of}", steps, "peak GB", at_most=gb, by="seconds", within=gb, unit="GB"),
        ]
    return bars


BARS = _bars()
