"""Runs a config: what the command line and `zo_kernels.train.run` share."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from ..command_line import flag
from ..distributed.agreement import agree
from ..distributed.launch import is_launched
from ..distributed.process_group import process_group, shared_store, use_own_gpu
from ..errors import CheckpointError, JournalError, UsageError
from ..interrupts import InterruptGate
from ..models import LanguageModel
from ..plot.losses import plot_losses
from ..run.best import Best, best_of, set_of
from ..run.files import write_text
from ..run.folder import RunFolder
from ..run.metrics import as_written, metrics_from_journal
from .arithmetic import as_terms
from .begin import Beginning, begin, resume_existing
from .build import compute_with
from .check import check
from .config import TrainConfig, as_json, from_json
from .device import choose_device
from .find_lr import SearchResult, find_lr
from .loggers import LOGGERS, Logger
from .loop import train
from .ranks import Ranks, has_group, start_timeout
from .record import FolderRecord, Record
from .reporter import Reporter
from .summary import print_best, print_header, print_summary, title


@dataclass(frozen=True, eq=False, repr=False)
class TrainResult:
    """What `run` returns.

    config: config of the run, with the device and the learning rate that were chosen.
    folder: folder with its files.
    model: the model, with its parameters after the last whole step.
    metrics: the lines of metrics.jsonl. Under torchrun, only rank 0 has them.
    interrupted: whether Ctrl-C or a signal ended the run early.
    failure: why the run ended early, if it could not go on; for example, because its loss diverged.
    best: step with the lowest loss of the set that the config's `keep` names, validation by default. None without
        `keep` and `patience`, and on ranks other than 0.
    stopped_early: whether `patience` ended the run.

    However a run ends, its files are complete and it can be resumed.
    """

    config: TrainConfig
    folder: Path
    model: LanguageModel
    metrics: list[dict[str, float | None]]
    interrupted: bool = False
    failure: str | None = None
    best: Best | None = None
    stopped_early: bool = False

    @property
    def final(self) -> dict[str, float]:
        """The last value of each loss and accuracy, by its name in the metrics, such as "validation_loss"."""
        return {
            name: value
            for line in self.metrics
            for name, value in line.items()
            if value is not None and name.endswith(("_loss", "_accuracy"))
        }

    def __repr__(self) -> str:
        return (
            f"TrainResult(folder={self.folder!r}, final={self.final}, interrupted={self.interrupted}, "
            f"failure={self.failure!r})"
        )


def run(config: TrainConfig, *, quiet: bool = False) -> TrainResult:
    """Trains as `python -m zo_kernels.train` does, and returns the trained model with its metrics.

        config = zo_kernels.train.default_config("copy", steps=200, out="runs/copy")
        result = zo_kernels.train.run(config)

    Prints what the command line prints: a header, the progress, a summary. quiet: prints nothing.

    Ctrl-C stops the run after restoring the parameters: the files are written and the result says `interrupted`. Before
    there is a run, it raises KeyboardInterrupt. SIGTERM ends the run in the same way, and then takes its usual effect.

    Raises UsageError for a config that can't be run or can't take its first step, JournalError or CheckpointError if a
    run to be resumed or forked is damaged, and ReplicaError or ProcessGroupError under torchrun if another process is
    lost.
    """
    check(config)
    gate = InterruptGate()
    try:
        with gate:
            return run_checked(config, gate, quiet=quiet)
    finally:
        if gate.requested == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)


def run_checked(config: TrainConfig, gate: InterruptGate, *, quiet: bool = False) -> TrainResult:
    """Runs a config that `check` has passed. The caller has entered the gate, which keeps the signal that came."""
    forms_group = is_launched() and not (dist.is_available() and dist.is_initialized())
    if forms_group and config.device != "cpu":
        use_own_gpu()  # before anything asks what it can do
    device, reason = choose_device(config)
    config = replace(config, device=device)  # so that the run is resumed on the same one
    with ExitStack() as stack:
        backend = stack.enter_context(compute_with(config))
        if forms_group:
            with gate.open():
                stack.enter_context(process_group(device, start_timeout(config), _terms_of(config)))
        elif has_group():
            agree(shared_store(), dist.get_rank(), dist.get_world_size(), _terms_of(config), start_timeout(config))
        ranks = Ranks(config)
        console = Console(
            highlight=False, markup=False, soft_wrap=not sys.stdout.isatty(), quiet=quiet or ranks.rank != 0
        )
        if ranks.is_launched:
            config = ranks.broadcast(lambda: as_json(resume_existing(config)), _read_config)
        loggers = _create_loggers(config) if ranks.rank == 0 else []
        found = None
        if config.lr_search:
            lr, found = find_lr(config, gate, ranks, console)
            config = replace(config, lr=lr, lr_search=False)
        beginning = begin(config, gate, ranks, lambda warning: console.print(f"warning: {warning}", style="yellow"))
        if beginning.folder is None:
            outcome = train(beginning, Record(), gate, ranks)
            folder = config.resume or config.out
            assert folder is not None  # `resume_existing` saw to it
            end = outcome.interrupted, outcome.failure
            return TrainResult(
                beginning.run.config, folder, beginning.run.model, [], *end, stopped_early=outcome.stopped_early
            )
        with beginning.folder as opened:
            try:
                for logger in loggers:
                    stack.callback(logger.close)
                    _start(logger, config, opened, beginning.step)
                if found is not None:
                    _write_search(opened, found)
            except BaseException:
                opened.discard()
                raise
            print_header(console, beginning.run, backend, ranks.count, reason)
            return _train_in(opened, beginning, console, loggers, gate, ranks)


def _terms_of(config: TrainConfig) -> dict[str, str]:
    """What must be the same on all ranks: all flags but --threads, and the arithmetic unless another is allowed."""
    values = json.loads(as_json(config))
    del values["threads"], values["format"]
    if values.pop("lr_search"):
        values["lr"] = "search"
    flags = {flag(name): "not given" if value in (None, "", []) else str(value) for name, value in values.items()}
    return flags if config.allow_other_arithmetic else {**as_terms(config), **flags}


def _read_config(text: object) -> TrainConfig:
    """Reads the config that rank 0 announces. Raises UsageError for one that can't be."""
    return from_json(str(text), "the config that rank 0 announced")


def _train_in(
    folder: RunFolder,
    beginning: Beginning,
    console: Console,
    loggers: Sequence[Logger],
    gate: InterruptGate,
    ranks: Ranks,
) -> TrainResult:
    """The part of rank 0, which has the folder."""
    run, start = beginning.run, beginning.step
    config = run.config
    if start:
        console.print(f"resumed after step {start} of {config.steps}")
    probes = config.probes if config.solver == "zo" else 0
    with Reporter(console, config.steps, start=start, probes=probes, in_words=run.task.in_words) as reporter:
        outcome = train(beginning, FolderRecord(run, folder, reporter, loggers), gate, ranks)
    if outcome.failure and config.resume is None and folder.journal.next_step == folder.journal.first_step:
        folder.discard()  # there is nothing in it that the same flags would not make again
        raise UsageError(outcome.failure)
    metrics = list(metrics_from_journal(folder.journal, run.per_step))
    picture, watched = title(config, run.model), set_of(config.keep)
    has_best = config.keep is not None or config.patience is not None
    best = best_of(folder.journal.losses(watched)) if has_best else None
    try:
        folder.finish(
            run.model.state_dict(),
            run.task.symbols,
            lambda path: plot_losses(
                path, metrics, picture, run.task.reference_losses, watched if best else None, run.task.loss_unit
            ),
        )
    except (CheckpointError, JournalError) as error:
        outcome = replace(outcome, failure=outcome.failure or str(error))
    print_summary(console, run, metrics, outcome.validating)
    if best is not None:
        print_best(console, run, watched, best, outcome.stopped_early)
    console.print(f"files in {folder.path}")
    lines = list(map(as_written, metrics))
    end = outcome.interrupted, outcome.failure
    return TrainResult(config, folder.path, run.model, lines, *end, best, outcome.stopped_early)


def _create_loggers(config: TrainConfig) -> list[Logger]:
    try:
        return [LOGGERS[name]() for name in config.log]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _start(logger: Logger, config: TrainConfig, folder: RunFolder, step: int) -> None:
    try:
        logger.start(asdict(config), folder.path, step)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _write_search(folder: RunFolder, found: SearchResult) -> None:
    try:
        write_text(folder.path / "lr_search.json", json.dumps(found.tried) + "\n")
    except OSError as error:
        raise UsageError(f"can't write {folder.path / 'lr_search.json'}: {error.strerror}") from error
