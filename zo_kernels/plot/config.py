"""The flags of `python -m zo_kernels.plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..command_line import option

X = Literal["steps", "forwards", "seconds", "tokens"]
Y = Literal["loss", "accuracy", "memory"]
DEFAULT_X: tuple[X, ...] = ("steps", "forwards", "seconds")


@dataclass(frozen=True)
class PlotConfig:
    """Plot runs of python -m zo_kernels.train side by side, in one picture."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, option("FOLDER...", "required")]
    """Folders of the runs. They may still be training."""
    out: Annotated[Path, option("FILE")] = Path("compare.png")
    """PNG file to write. An existing PNG is replaced."""
    csv: Annotated[Path | None, option("FILE", "optional")] = None
    """CSV file to write the drawn points to, as a table. An existing table of this kind is replaced."""
    x: tuple[X, ...] = DEFAULT_X
    """Horizontal axes, a panel for each: steps, forward passes, seconds of training, tokens of the batches so far."""
    y: Y = "loss"
    """Vertical axis: loss, accuracy (of tokens and, where a task has them, of whole answers), or peak memory."""
    sets: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="SET [SET ...]")] = ("validation",)
    """Data sets of losses and accuracies: train, validation, test, longer, or others that the task has."""
    smooth: int = 20
    """Steps of the running mean of training losses. The losses themselves are drawn faintly; 1: no running mean."""
    log_y: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Logarithmic vertical axis."""


def parse(arguments: Sequence[str]) -> PlotConfig:
    """Returns the config that command-line arguments ask for. Prints help or a parse error, and exits."""
    return tyro.cli(PlotConfig, prog="python -m zo_kernels.plot", args=arguments)
