"""The lines of metrics.jsonl, which repeat the journal of a run as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from .journal import Journal, Row, Scores

Metrics = Mapping[str, float | None]
"""One line of metrics.jsonl: `step`, and the values measured in or after that step."""


def metrics_of(row: Row, scores: Scores, forwards: int) -> dict[str, float]:
    """The line of metrics.jsonl for a journal row. scores: validation scores after the step; may be empty."""
    done = row.step + 1
    return {
        "step": done,
        "train_loss": row.loss,
        "lr": row.lr,
        "skipped_probes": sum(map(math.isnan, row.coeffs.tolist())),
        "seconds": row.seconds,
        "forwards": done * forwards,
        **named_scores(scores),
    }


def named_scores(scores: Scores) -> dict[str, float]:
    """NAME_loss, in nats per token, and NAME_accuracy of each set as metrics."""
    metrics = {}
    for name, (loss, accuracy) in scores.items():
        metrics[f"{name}_loss"] = loss
        metrics[f"{name}_accuracy"] = accuracy
    return metrics


def metrics_from_journal(journal: Journal, forwards: int) -> Iterator[Metrics]:
    """All lines of metrics.jsonl, rebuilt from the journal. Those of missing rows are left out."""
    for start, stop in journal.stretches():
        if beginning := journal.scores(start):
            yield {"step": start, **named_scores(beginning)}
        for row in journal.rows(start, stop):
            yield metrics_of(row, journal.scores(row.step + 1), forwards)


def as_line(metrics: Metrics) -> str:
    """The text of a line."""
    return json.dumps(as_written(metrics)) + "\n"


def as_written(metrics: Metrics) -> dict[str, float | None]:
    """The values of a line as JSON can hold them: one that is not finite becomes null."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
