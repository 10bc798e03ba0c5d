"""The command line: `python -m zo_kernels.train --help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from rich.console import Console

from ..errors import CheckpointError, JournalError
from .begin import begin
from .build import computing
from .command_line import parse
from .config import TrainConfig, UsageError
from .find_lr import find_lr
from .interrupt_gate import InterruptGate
from .loggers import LOGGERS, Logger
from .loop import Outcome, train
from .plot import plot_losses
from .reporter import Reporter
from .run_folder import RunFolder, journaled_metrics, write_text
from .summary import print_header, print_summary, title

EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the arguments say (None: those of the process) and returns the exit code.

    0 if all steps were done, 2 after bad input or if the run could not go on, 130 after Ctrl-C. Except after bad input,
    the run folder is complete.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        with InterruptGate() as gate, computing(config) as backend:
            outcome = _train(config, backend, gate, console)
    except (UsageError, JournalError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    if outcome.interrupted:
        print("interrupted: the weights are those of the last whole step, all files are written", file=sys.stderr)
        return EXIT_INTERRUPTED
    if outcome.failure is not None:
        print(f"error: {outcome.failure}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_DONE


def _train(config: TrainConfig, backend: str, gate: InterruptGate, console: Console) -> Outcome:
    loggers = _loggers(config)
    found = None
    if config.lr_search:
        try:
            lr, found = find_lr(config, gate, console)
        except KeyboardInterrupt:
            raise UsageError("interrupted while searching for a learning rate: there is no run yet") from None
        config = replace(config, lr=lr, lr_search=False)
    run, folder, start = begin(config, gate, lambda warning: console.print(f"warning: {warning}", style="yellow"))
    with ExitStack() as stack:
        stack.enter_context(folder)
        if found is not None:
            write_text(folder.path / "lr_search.json", json.dumps(found.tried) + "\n")
        for logger in loggers:
            stack.callback(logger.close)
            _start(logger, config, folder, start)
        print_header(console, run, backend)
        if start:
            console.print(f"resumed after step {start} of {config.steps}")
        probes = config.probes if config.solver == "zo" else 0
        with Reporter(console, config.steps, start=start, probes=probes) as reporter:
            outcome = train(run, folder, start, reporter, gate, loggers)
        metrics = list(journaled_metrics(folder.journal, run.solver.forwards))
        picture = title(config, run.model)
        try:
            folder.finish(
                run.model.state_dict(), lambda path: plot_losses(path, metrics, picture, run.task.reference_losses)
            )
        except CheckpointError as error:
            outcome = Outcome(failure=outcome.failure or str(error))
        print_summary(console, run, metrics)
    console.print(f"files in {folder.path}")
    return outcome


def _loggers(config: TrainConfig) -> list[Logger]:
    try:
        return [LOGGERS[name]() for name in config.log]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _start(logger: Logger, config: TrainConfig, folder: RunFolder, step: int) -> None:
    try:
        logger.start(asdict(config), folder.path, step)
    except ValueError as error:
        raise UsageError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
