"""The command line: `python -m zo_kernels.replay --help`, or `zo-replay --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from ..command_line import EXIT_DONE, EXIT_ERROR, option, run_program
from ..errors import CheckpointError, JournalError, UsageError
from ..run.tensors import save_tensors
from .weights import replay


@dataclass(frozen=True)
class ReplayConfig:
    """Rebuild the weights that a run had after any of its steps, from its journal."""

    run: tyro.conf.Positional[Annotated[Path, option("RUN")]]
    """Folder of a run of python -m zo_kernels.train, or of a durable loop. It may still be training."""
    out: Annotated[Path, option("FILE")]
    """New safetensors file to write the weights to."""
    step: Annotated[int | Literal["best"] | None, option("INT|best", "default: the last one")] = None
    """Number of steps after which to take the weights; best: where the loss was lowest of the set of --keep."""
    allow_import: bool = False
    """Import the code outside zo_kernels that the run names. That runs it: look at its config.json before."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the weights that the arguments ask for (None: those of the process) and returns the exit code.

    0 if they were written, 2 after bad input.
    """
    config = tyro.cli(ReplayConfig, prog="python -m zo_kernels.replay", args=arguments)
    try:
        if os.path.lexists(config.out):
            raise UsageError(f"{config.out} exists and is not overwritten: give --out another name")
        if not config.out.parent.is_dir():
            raise UsageError(f"can't write {config.out}: there is no folder {config.out.parent}")
        replayed = replay(
            config.run,
            config.step,
            lambda warning: print(f"warning: {warning}", file=sys.stderr),
            allow_import=config.allow_import,
        )
        save_tensors(config.out, replayed.weights)
    except (UsageError, JournalError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    steps = "1 step" if replayed.replayed == 1 else f"{replayed.replayed} steps"
    print(
        f"step {replayed.step}: {steps} replayed from a checkpoint in {replayed.seconds:.2f} s; weights in {config.out}"
    )
    return EXIT_DONE


def program() -> NoReturn:
    """The script `zo-replay`: runs `main` and ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
