"""`python -m zo_kernels`: what this installation can do here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from . import show_config
from .command_line import EXIT_DONE, run_program
from .environment import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints it as the arguments say (None: those of the process) and returns the exit code 0."""
    parser = argparse.ArgumentParser(
        "python -m zo_kernels",
        description="Show what was built, which instruction set is in use, and which backends work on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="print it as one JSON object, for programs")
    if parser.parse_args(arguments).json:
        print(json.dumps(describe(), indent=2))
    else:
        show_config()
    return EXIT_DONE


if __name__ == "__main__":
    run_program(main)
