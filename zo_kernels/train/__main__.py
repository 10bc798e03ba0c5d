"""The command line: `python -m zo_kernels.train --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from .build import build, computing
from .config import UsageError, parse
from .interrupt_gate import InterruptGate
from .loop import train
from .reporter import Reporter
from .run_folder import RunFolder
from .summary import print_header, print_summary

EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the arguments say (None: those of the process) and returns the exit code.

    0 if all steps were done, 2 after bad input or if the optimizer could not go on, 130 after Ctrl-C. Except after bad
    input, the run folder is complete.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        with InterruptGate() as gate, computing(config) as backend:
            run = build(config)
            folder = RunFolder(config, run.task.symbols)
            print_header(console, run, backend)
            with Reporter(console, config.steps) as reporter:
                outcome = train(run, folder, reporter, gate)
            model = f"{type(run.model).__name__}, hidden size {config.hidden_size}"
            title = f"{config.task}: {model}, CD-RGE with {config.probes} probes"
            folder.finish(run.model.state_dict(), title, run.task.reference_losses)
            print_summary(console, run, folder.metrics())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(f"files in {folder.path}")
    if outcome.interrupted:
        print("interrupted: the weights are those of the last whole step, all files are written", file=sys.stderr)
        return EXIT_INTERRUPTED
    if outcome.failure is not None:
        print(f"error: {outcome.failure}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
