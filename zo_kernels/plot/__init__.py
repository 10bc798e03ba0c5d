"""Plots runs side by side: `python -m zo_kernels.plot`, and the function behind it.

plot_runs(["runs/first", "runs/second"], "compare.png", sets=["validation", "train"], log_y=True)
"""

from ..errors import UsageError
from .compare import plot_runs

__all__ = ["UsageError", "plot_runs"]
