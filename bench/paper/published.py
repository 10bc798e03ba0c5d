"""The figures of Chaubard and Kochenderfer, arXiv 2505.17852, that ours are shown beside."""

from __future__ import annotations

BEST_LOSSES: dict[str, dict[str, float]] = {
    "copy": {"100k": 3.37, "1m": 3.35, "10m": 3.36},
    "reverse": {"100k": 3.30, "1m": 3.34, "10m": 3.36},
    "add": {"100k": 1.52, "1m": 1.50, "10m": 1.70},
    "ptb": {"100k": 2.37, "1m": 2.40, "10m": 2.45},
}
"""Table 2: the lowest validation loss of each column, in nats, whatever the solver."""

CHANCE = 3.40
"""Of Table 2, in nats: the logarithm of 30 symbols."""

SECONDS_PER_STEP = {"100k": 5.7, "1m": 6.0, "10m": 7.8, "100m": 24.3}
"""Table 1: seconds of a step on an A40."""

GIGABYTES = {"100k": 0.5, "1m": 1.0, "10m": 4.0, "100m": 25.3}
"""Table 1: memory of a step."""

DOLLARS_PER_GB_HOUR, DOLLARS_PER_TFLOP_HOUR = 0.018, 0.001
"""Table 1: the prices."""

FEWER_STEPS = 19
"""Figure 1: up to how many times fewer steps than back-propagation."""
