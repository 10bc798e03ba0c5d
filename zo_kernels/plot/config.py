"""The flags of `python -m zo_kernels.plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..command_line import option

X = Literal["step", "forwards", "seconds"]
Y = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class PlotConfig:
    """Draw runs of python -m zo_kernels.train into one picture: losses against steps, forward passes and time."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, option("FOLDER...", "required")]
    """Folders of the runs, also of those that are still going on."""
    out: Annotated[Path, option("FILE")] = Path("compare.png")
    """PNG file to write; one that is there is replaced."""
    x: tuple[X, ...] = ("step", "forwards", "seconds")
    """A panel for each: against the step, the forward passes, the seconds of training."""
    y: Y = "loss"
    """What to draw."""
    sets: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="SET [SET ...]")] = ("validation",)
    """Of which sets of data: train, validation, longer, or another that the task has."""
    smooth: int = 20
    """Steps whose running mean is drawn in place of noisy training losses, which stay as a faint line; 1: none."""
    log_y: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Logarithmic vertical axis."""


def parse(arguments: Sequence[str]) -> PlotConfig:
    """The config that command-line arguments ask for. Prints help or a parse error and exits, as tyro does."""
    return tyro.cli(PlotConfig, prog="python -m zo_kernels.plot", args=arguments)
