"""Builds the parts of a run from its config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..backends import backend, backend_for, is_named
from ..backends.cpu import is_built
from ..distributed.launch import is_launched
from ..errors import UsageError
from ..extensions import call
from ..interrupts import InterruptGate
from ..models import LanguageModel, RecurrentLM, build_model
from ..ops.recurrent import check_precision
from ..run.best import set_of
from ..run.entries import TOKENIZER
from ..run.files import read_text
from ..run.folder import VOCABULARY_LIMIT
from ..run.metrics import PerStep
from ..tasks import TASKS, Batch, Task, find_task, reads_numbers
from ..tasks.codecs import Subwords
from .config import TrainConfig, read_config, task_options
from .device import choose_device
from .forward import is_flash, name_forward
from .memory import check_memory
from .options import FLASHRNN
from .solvers import SOLVERS, Solver

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """The parts of a training run, ready for its first step."""

    config: TrainConfig
    device: torch.device
    task: Task
    solver: Solver

    @property
    def model(self) -> LanguageModel:
        """The model that is trained."""
        return self.solver.model

    @cached_property
    def per_step(self) -> PerStep:
        """What each step takes. The batch of step 0 stands for all."""
        return PerStep(self.solver.forwards, self.task.batch(0).targets.numel())

    def batch(self, step: int) -> Batch:
        """The training batch of a step, on the device."""
        return self.task.batch(step).to(self.device)


def build(config: TrainConfig, gate: InterruptGate, tokenizer: str | None = None) -> Run:
    """Builds the task, the model and the solver of a config, on its device.

    tokenizer: text of the tokenizer.json of a run that goes on. None: that of the run that is forked, if it has one.

    Raises UsageError for a value that a constructor or the optimizer's first step would refuse.
    """
    # Reading a file may take long. Under torchrun, an interrupt waits for the first step, where all ranks stop.
    reading = nullcontext() if is_launched() else gate.open()
    try:
        with reading:
            task = _build_task(config.task, _options(config, tokenizer))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.keep is not None or config.patience is not None:
        _check_set(set_of(config.keep), task)
    device = torch.device(choose_device(config).type)
    solver = build_solver(config, task.vocab_size, gate)
    if config.solver == "zo" and config.distribution == "rademacher":  # other probes have no population
        name_forward(config, solver.model)
    return Run(config, device, task, solver)


def _check_set(name: str, task: Task) -> None:
    if name not in (known := task.validation_batches()):
        there = ", ".join(known) or "none"
        raise UsageError(f"--keep and --patience need a set that the run is validated on ({there}), not {name}")


def _build_task(name: str, options: dict[str, Any]) -> Task:
    return TASKS[name](**options) if name in TASKS else call(name, find_task(name), **options)


def _options(config: TrainConfig, tokenizer: str | None) -> dict[str, Any]:
    options = task_options(config)
    if tokenizer is None and config.fork is not None:
        kept = read_tokenizer(config.fork)  # None if the folder is gone, which a resumed fork does not need
        if kept is not None and read_config(config.fork).tokenizer == config.tokenizer:
            tokenizer = kept
    if tokenizer is not None and "tokenizer" in options and config.task != "owt":  # its file holds tokens
        options["tokenizer"] = Subwords(tokenizer)
    return options


def read_tokenizer(run: Path) -> str | None:
    """Returns the text of a run's tokenizer.json, or None if it has none. Raises UsageError if it can't be read."""
    path = run / TOKENIZER
    if not os.path.lexists(path):
        return None
    try:
        return read_text(path, VOCABULARY_LIMIT)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error})") from error


def build_solver(config: TrainConfig, vocab_size: int, gate: InterruptGate) -> Solver:
    """Builds the model and its solver, without the task. Raises as `build` does."""

    def make(device: str, seed: int | None) -> LanguageModel:
        return build_model(
            config.model,
            vocab_size,
            embed_dim=config.embed_dim,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            layer_norm=config.layer_norm,
            residual=config.residual,
            memory_slots=config.memory_slots,
            memory_width=config.memory_width,
            reads_numbers=reads_numbers(config.task),
            flashrnn=config.forward == FLASHRNN,
            seed=seed,
            device=device,
        )

    device = choose_device(config).type
    try:
        check_memory(config, lambda: make("meta", None), device)
        model = make(device, config.seed)
        if isinstance(model, RecurrentLM):
            model.population_forward = config.forward
        if config.precision not in model.precisions:
            raise UsageError(f"the model {config.model} has no {config.precision} products: leave --precision out")
        solver = SOLVERS[config.solver](config, model, gate)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return solver


@contextmanager
def compute_with(config: TrainConfig) -> Iterator[str]:
    """Sets torch's number of threads and the backend within its block. Yields the backend's name.

    Raises UsageError if the device, the backend or the precision is unknown, does not work on this machine, or does not
    work with the others; and if the package was not built and nobody asked for the slow reference.
    """
    device = choose_device(config).type
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("the device cuda is not available, for torch finds no usable GPU here: give --device cpu")
    with ExitStack() as stack:
        try:
            if config.backend != "auto":
                stack.enter_context(backend(config.backend))
            elif device == "cpu" and not is_built() and not is_named():  # as in a checkout that was not built
                raise UsageError(
                    f"build first: pip install -e . (the package in {_PACKAGE} has no compiled module, without which a "
                    "run takes hundreds of times as long; --backend reference starts it all the same)"
                )
            chosen = backend_for(device)
            if not is_flash(config):  # it has products of its own
                check_precision(chosen, config.precision)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from error
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        yield chosen.name
