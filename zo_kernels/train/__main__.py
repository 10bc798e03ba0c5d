"""The command line: `python -m zo_kernels.train --help`, or `zo-train --help`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..command_line import EXIT_DONE, EXIT_ERROR, run_program
from ..distributed.launch import read_launch, read_local_rank
from ..errors import CheckpointError, JournalError, ProcessGroupError, ReplicaError, UsageError
from ..interrupts import InterruptGate
from .api import run_checked
from .cli import parse

_EXIT_SIGNAL = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the arguments say (None: those of the process) and returns the exit code.

    0 if all steps were taken, 2 after bad input or if the run could not go on, 130 after Ctrl-C, 143 after SIGTERM. The
    run folder is complete, except after bad input or the loss of another process.

    Under torchrun, this is one of the processes that share the run.
    """
    rank, who, is_silent = 0, "", False
    try:
        launch = read_launch()
        if launch is not None and launch.world_size > 1:
            rank, who = launch.rank, f"rank {launch.rank}: "
        is_silent = bool(read_local_rank())  # bad arguments are reported once a machine
        config = parse(sys.argv[1:] if arguments is None else arguments, silent=is_silent)
    except UsageError as error:
        if not is_silent:
            _report(error)
        return EXIT_ERROR
    gate = InterruptGate()
    try:
        with gate:
            result = run_checked(config, gate)
    except (UsageError, JournalError, CheckpointError, ReplicaError, ProcessGroupError) as error:
        _report(error, who)
        return EXIT_ERROR
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted before the run began", file=sys.stderr)
        return _EXIT_SIGNAL + (gate.requested or signal.SIGINT)
    if result.interrupted:
        if rank == 0:
            print("interrupted: the weights are those of the last whole step, all files are written", file=sys.stderr)
        return _EXIT_SIGNAL + (gate.requested or signal.SIGINT)
    if result.failure is not None:
        _report(result.failure, who)
        return EXIT_ERROR
    return EXIT_DONE


def _report(error: Exception | str, who: str = "") -> None:
    print(f"{who}error: {error}", file=sys.stderr)


def program() -> NoReturn:
    """The script `zo-train`: runs `main` and ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
