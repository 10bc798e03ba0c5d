"""A durable run of any training loop: kill it at any moment, start its script again, and it ends with the same bits.

with zo_kernels.durable.run("runs/mine", model, opt) as run:
    for step in run.steps(1000):
        opt.step(loss_of(step))
"""

from .begin import run
from .loop import DurableRun

__all__ = ["DurableRun", "run"]
