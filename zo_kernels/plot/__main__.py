"""The command line: `python -m zo_kernels.plot --help`, or `zo-plot --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from ..command_line import EXIT_DONE, EXIT_ERROR, run_program
from ..errors import UsageError
from .compare import plot_runs
from .config import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Plots as the arguments say (None: those of the process) and returns the exit code: 0, or 2 after bad input."""
    config = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        options = {name: value for name, value in vars(config).items() if name not in ("runs", "out")}
        plot_runs(config.runs, config.out, **options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    print(f"written to {config.out}" + (f" and {config.csv}" if config.csv else ""))
    return EXIT_DONE


def program() -> NoReturn:
    """The script `zo-plot`: runs `main` and ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
