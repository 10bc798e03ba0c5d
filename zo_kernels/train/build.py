"""Builds the parts of a run from its config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..backends import backend, backend_for, is_named
from ..backends.cpu import is_built
from ..distributed.launch import is_launched
from ..errors import UsageError
from ..interrupts import InterruptGate
from ..models import LanguageModel, build_model
from ..ops.recurrent import check_precision
from ..tasks import TASKS, Batch, Task
from .config import TrainConfig, task_options
from .device import choose_device
from .memory import check_memory
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

    def batch(self, step: int) -> Batch:
        """The training batch of a step, on the device."""
        return self.task.batch(step).to(self.device)


def build(config: TrainConfig, gate: InterruptGate) -> Run:
    """Builds the task, the model and the solver of a config, on its device.

    Raises UsageError for a value that a constructor or the optimizer's first step would refuse.
    """
    # Reading a file may take long. Under torchrun, an interrupt waits for the first step, where all ranks stop.
    reading = nullcontext() if is_launched() else gate.open()
    try:
        with reading:
            task = TASKS[config.task](**task_options(config))
    except ValueError as error:
        raise UsageError(str(error)) from error
    device = torch.device(choose_device(config).type)
    return Run(config, device, task, build_solver(config, task.vocab_size, gate))


def build_solver(config: TrainConfig, vocab_size: int, gate: InterruptGate) -> Solver:
    """Builds the model and its solver, without the task. Raises as `build` does."""
    device = choose_device(config).type
    try:
        check_memory(config, vocab_size, device)
        model = build_model(
            config.model,
            vocab_size,
            embed_dim=config.embed_dim,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            memory_slots=config.memory_slots,
            memory_width=config.memory_width,
            seed=config.seed,
            device=device,
        )
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
            check_precision(chosen, config.precision)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from error
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        yield chosen.name
