"""The command line: `python -m zo_kernels.train --help`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from rich.console import Console

from ..distributed.process_group import is_launched, process_group
from ..errors import CheckpointError, JournalError, ProcessGroupError, ReplicaError, UsageError
from ..interrupts import InterruptGate
from ..plot.losses import plot_losses
from ..run.folder import RunFolder, metrics_from_journal, write_text
from .begin import Beginning, begin, resume_existing
from .build import compute_with
from .cli import parse
from .config import TrainConfig
from .find_lr import SearchResult, find_lr
from .loggers import LOGGERS, Logger
from .loop import Outcome, train
from .ranks import Ranks
from .record import FolderRecord, Record
from .reporter import Reporter
from .summary import print_header, print_summary, title

EXIT_DONE, EXIT_ERROR = 0, 2
_EXIT_SIGNAL = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the arguments say (None: those of the process) and returns the exit code.

    0 if all steps were done, 2 after bad input or if the run could not go on, 130 after Ctrl-C, 143 after SIGTERM.
    Except after bad input or the loss of another process, the run folder is complete.

    Started by torchrun, it is one of the processes that share the run.
    """
    is_quiet = int(os.environ.get("LOCAL_RANK", "0")) != 0  # what all ranks have to say, one says
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments, silent=is_quiet)
    except UsageError as error:
        if not is_quiet:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    who = ""
    try:
        with InterruptGate() as gate, ExitStack() as stack:
            if is_launched():
                with gate.open():
                    stack.enter_context(process_group(config.device, config.timeout))
            ranks = Ranks(config)
            who = f"rank {ranks.rank}: " if ranks.count > 1 else ""
            backend = stack.enter_context(compute_with(config))
            outcome = _train(config, backend, gate, ranks)
    except (UsageError, JournalError, CheckpointError, ReplicaError, ProcessGroupError) as error:
        print(f"{who}error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:  # before there was a run
        return _EXIT_SIGNAL + (gate.requested or signal.SIGINT)
    if outcome.interrupted:
        if ranks.rank == 0:
            print("interrupted: the weights are those of the last whole step, all files are written", file=sys.stderr)
        return _EXIT_SIGNAL + (gate.requested or signal.SIGINT)
    if outcome.failure is not None:
        print(f"{who}error: {outcome.failure}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_DONE


def _train(config: TrainConfig, backend: str, gate: InterruptGate, ranks: Ranks) -> Outcome:
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=ranks.rank != 0)
    if ranks.is_launched:
        config = ranks.broadcast(lambda: resume_existing(config))
    loggers = _loggers(config) if ranks.rank == 0 else []
    found = None
    if config.lr_search:
        try:
            lr, found = find_lr(config, gate, ranks, console)
        except KeyboardInterrupt:
            raise UsageError("interrupted while searching for a learning rate: there is no run yet") from None
        config = replace(config, lr=lr, lr_search=False)
    beginning = begin(config, gate, ranks, lambda warning: console.print(f"warning: {warning}", style="yellow"))
    if beginning.folder is None:
        return train(beginning, Record(), gate, ranks)
    with beginning.folder as folder, ExitStack() as stack:
        for logger in loggers:
            stack.callback(logger.close)
            _start(logger, config, folder, beginning.step)
        return _train_in(folder, beginning, found, console, backend, loggers, gate, ranks)


def _train_in(
    folder: RunFolder,
    beginning: Beginning,
    found: SearchResult | None,
    console: Console,
    backend: str,
    loggers: Sequence[Logger],
    gate: InterruptGate,
    ranks: Ranks,
) -> Outcome:
    """The part of rank 0, which has the folder."""
    run, start = beginning.run, beginning.step
    config = run.config
    if found is not None:
        write_text(folder.path / "lr_search.json", json.dumps(found.tried) + "\n")
    print_header(console, run, backend, ranks.count)
    if start:
        console.print(f"resumed after step {start} of {config.steps}")
    probes = config.probes if config.solver == "zo" else 0
    with Reporter(console, config.steps, start=start, probes=probes) as reporter:
        outcome = train(beginning, FolderRecord(run, folder, reporter, loggers), gate, ranks)
    metrics = list(metrics_from_journal(folder.journal, run.solver.forwards))
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
