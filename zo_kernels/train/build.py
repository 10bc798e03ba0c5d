"""From a config to the things that a run is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from ..backends import backend, backend_for
from ..errors import GridRangeError
from ..grid import Grid, largest_magnitude
from ..models import MODELS, RecurrentLM
from ..ops.recurrent import check_precision
from ..optim import CDRGE
from ..tasks import TASKS, Task
from .config import TrainConfig, UsageError, task_options


@dataclass(frozen=True)
class Run:
    """All parts of a training run, ready for its first step."""

    config: TrainConfig
    device: torch.device
    task: Task
    model: RecurrentLM
    optimizer: CDRGE
    scheduler: LRScheduler


def build(config: TrainConfig) -> Run:
    """The task, the model and the optimizer that a config asks for, on its device.

    Raises UsageError if a constructor, or the optimizer's first step, would refuse a value.
    """
    device = torch.device(config.device)
    try:
        task = TASKS[config.task](**task_options(config))
        model = MODELS[config.cell](
            task.vocab_size, config.embed_dim, config.hidden_size, config.num_heads, seed=config.seed, device=device
        )
        optimizer = CDRGE(
            model.named_parameters(),
            lr=config.lr,
            eps=config.eps,
            probes=config.probes,
            seed=config.seed,
            weight_decay=config.weight_decay,
        )
        theta = optimizer.arena.flat
        Grid.for_range(largest_magnitude(theta) + config.eps, theta.dtype).round_eps(
            config.eps
        )  # as the first step will
    except (ValueError, GridRangeError) as error:
        raise UsageError(str(error)) from error
    scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=config.lr_decay, total_iters=config.steps)
    return Run(config, device, task, model, optimizer, scheduler)


@contextmanager
def computing(config: TrainConfig) -> Iterator[str]:
    """Within it torch has the config's number of threads, and its backend, whose name it gives, makes the probes.

    Raises UsageError if the device, the backend or the precision is unknown or does not work here, or not with the
    others.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("the device cuda is not available: torch finds no usable NVIDIA GPU here")
    with ExitStack() as stack:
        try:
            if config.backend != "auto":
                stack.enter_context(backend(config.backend))
            chosen = backend_for(config.device)
            check_precision(chosen, config.precision)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from error
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        yield chosen.name
