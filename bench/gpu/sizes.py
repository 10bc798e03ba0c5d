"""The models that a GPU day measures: those of Table 1 of arXiv 2505.17852, and small ones to rehearse with."""

from __future__ import annotations

from typing import Any, NamedTuple

from zo_kernels.models.presets import PRESETS


class Size(NamedTuple):
    """An LSTM and its batch. paper_gb, paper_seconds: of a step in the paper. times_faster: than it, wanted."""

    hidden_size: int
    num_heads: int
    vocab: int = 100
    embed: int = 100
    batch: int = 1024
    time: int = 10
    probes: int = 96
    measured_probes: int = 96
    """Fewer where all of them would take minutes: the forward is linear in them."""
    paper_gb: float | None = None
    paper_seconds: float | None = None
    times_faster: float | None = None

    @property
    def parameters(self) -> int:
        hidden, head_dim = self.hidden_size, self.hidden_size // self.num_heads
        return self.vocab * (self.embed + hidden + 1) + 4 * hidden * (self.embed + head_dim + 1)

    @property
    def most_seconds(self) -> float | None:
        return self.paper_seconds / self.times_faster if self.paper_seconds and self.times_faster else None


def _paper(name: str, **figures: Any) -> Size:
    preset = PRESETS[f"paper-lstm-{name}"]
    return Size(preset.hidden_size, preset.num_heads, **figures)


SIZES = {
    "100k": _paper("100k", paper_gb=0.5, paper_seconds=5.7, times_faster=100),
    "1M": _paper("1m", paper_gb=1.0),
    "10M": _paper("10m", paper_gb=4.0),
    "100M": _paper("100m", measured_probes=8, paper_gb=25.3),
    "1.1B": _paper("1.1b", measured_probes=4, paper_gb=39.5, paper_seconds=145.0, times_faster=10),
}

_REHEARSED = Size(40, 2, vocab=11, embed=5, batch=4, time=3, probes=4)

REHEARSAL = {"100k": _REHEARSED._replace(measured_probes=4), "1.1B": _REHEARSED._replace(measured_probes=2)}


ON = {"cuda": SIZES, "cpu": REHEARSAL}
"""The sizes by device."""
