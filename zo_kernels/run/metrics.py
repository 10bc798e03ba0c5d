"""The lines of metrics.jsonl, which repeat the journal of a run as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .journal import Journal, Row, Scores

Metrics = Mapping[str, float | None]
"""One line of metrics.jsonl: `step`, and the values measured in or after that step."""

EXACT = "_exact"
"""Ends the name of scores that have no loss, and whose accuracy is the share of answers that are right as a whole."""

MEMORY = ("peak_rss_mb", "peak_vram_mb")
_MEASURED = (*MEMORY, "validation_share")
"""Metrics that the journal keeps beside the scores, under their own names, in the place of a loss."""

ADDED = frozenset({"ms_per_step", "forwards", "tokens"})
"""Metrics of steps that older runs did not write, although their journal has them."""


class PerStep(NamedTuple):
    """What each step of a run takes: its forward passes, and the tokens of its batch. 0 where that is unknown."""

    forwards: int
    tokens: int


def metrics_of(row: Row, scores: Scores, per_step: PerStep, seconds_before: float) -> dict[str, float]:
    """The line of metrics.jsonl for a journal row.

    scores: what was measured after the step; may be empty. seconds_before: the seconds of the row before; 0 if there is
        none.
    """
    done = row.step + 1
    totals = {name: done * count for name, count in per_step._asdict().items() if count}
    return {
        "step": done,
        "train_loss": row.loss,
        "lr": row.lr,
        "skipped_probes": sum(map(math.isnan, row.coeffs.tolist())),
        "seconds": row.seconds,
        "ms_per_step": round(1e3 * (row.seconds - seconds_before), 3),
        **totals,
        **named_scores(scores),
    }


def named_scores(scores: Scores) -> dict[str, float]:
    """NAME_loss, in nats per token, and NAME_accuracy of each set as metrics, and what else was measured."""
    metrics = {}
    for name, (loss, accuracy) in scores.items():
        if name in _MEASURED:
            metrics[name] = loss
            continue
        if not (name.endswith(EXACT) and math.isnan(loss)):
            metrics[f"{name}_loss"] = loss
        if not math.isnan(accuracy):
            metrics[f"{name}_accuracy"] = accuracy
    return metrics


def metrics_from_journal(journal: Journal, per_step: PerStep) -> Iterator[Metrics]:
    """All lines of metrics.jsonl, rebuilt from the journal. Those of missing rows are left out."""
    seconds = 0.0
    for start, stop in journal.stretches():
        if beginning := journal.scores(start):
            yield {"step": start, **named_scores(beginning)}
        for row in journal.rows(start, stop):
            yield metrics_of(row, journal.scores(row.step + 1), per_step, seconds)
            seconds = row.seconds


def as_line(metrics: Metrics) -> str:
    """The text of a line."""
    return json.dumps(as_written(metrics)) + "\n"


def as_written(metrics: Metrics) -> dict[str, float | None]:
    """The values of a line as JSON can hold them: one that is not finite becomes null."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
