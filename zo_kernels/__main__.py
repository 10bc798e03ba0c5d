"""`python -m zo_kernels`: what this installation can do here."""

from __future__ import annotations

from . import show_config
from .command_line import EXIT_DONE, run_program


def main() -> int:
    """Prints it and returns the exit code 0."""
    show_config()
    return EXIT_DONE


if __name__ == "__main__":
    run_program(main)
