"""What decides about the bits of a run's losses besides its config, and when a run has to do with another one."""

from __future__ import annotations

from pathlib import Path

import torch

from ..backends import backend_for
from ..backends.cpu import _C
from ..backends.recurrent.fused_cell import fused_cell
from ..models import LanguageModel
from ..models.build import has_memory
from ..models.cells import MODELS
from ..run.arithmetic import (
    ACTIVITY_KERNEL_VERSION,
    BATCHED_VERSION,
    KERNEL_VERSION,
    MEMORY_KERNEL_VERSION,
    NAMES,
    Arithmetic,
    check_arithmetic,
    kernel_version,
    package_version,
)
from ..tasks import reads_numbers
from .config import TrainConfig
from .device import choose_device
from .forward import has_activity_kernel, is_flash, name_forward
from .options import FLASHRNN

_MEMORY_KERNEL = "memory kernel"


def arithmetic_of(config: TrainConfig, model: LanguageModel | None = None) -> Arithmetic:
    """Describes the arithmetic of a run's forward passes in this process, where `compute_with` has set the backend.

    model: that of the run, which says what computes it. None leaves out what depends on its sizes and its GPU.

    backend: Name of the backend in use. isa: The instruction set of the forward passes, or the compute capability of
    the GPU. precision: That of their products. forward: What computes the forward passes of steps: a population kernel,
    with the version of its bits, or torch. torch's own version counts only in the second case, since probes and updates
    have the same bits everywhere. Where one computes the losses and the other carries the states of a stateful run,
    both are named.
    zo_kernels: Its version.
    """
    device = choose_device(config).type
    backend = backend_for(device)
    in_populations = config.solver == "zo" and config.distribution == "rademacher"
    in_kernels = in_populations and config.forward in ("auto", "kernel")
    is_fused = config.model in MODELS and not is_flash(config) and not reads_numbers(config.task)
    has_kernel = in_kernels and is_fused
    in_torch = f"torch {torch.__version__}"
    if config.forward == FLASHRNN:  # not named for an sLSTM without the flag, as in the runs of older versions
        in_torch = f"{name_forward(config, model) if model is not None else FLASHRNN}, {in_torch}"
    if is_fused and (config.forward == "batched" or device == "cuda") and (in_populations or config.stateful):
        in_torch += f", batched {BATCHED_VERSION}"
        if model is not None and fused_cell(model.device, torch.float32) is not None:
            in_torch += " with the fused cell"
    is_pass_of_torch = not (is_flash(config) or has_memory(config.model) or (is_fused and in_populations))
    if device == "cuda" and config.solver == "zo" and is_pass_of_torch:
        in_torch += ", no TF32"  # in cuDNN's layers; older versions left it on
    if device == "cuda":
        isa = "sm_{}{}".format(*torch.cuda.get_device_capability())
        kernel = in_torch
        if has_kernel and config.precision == "bfloat16":
            kernel = f"{'' if model is None else name_forward(config, model) + ' '}kernel {KERNEL_VERSION}, {in_torch}"
    elif backend.name == "cpu" and _C is not None and has_kernel:
        isa = _C.active_isa()
        kernel = f"kernel {kernel_version(isa)}"
    elif _C is not None and has_activity_kernel(config, device):
        isa, has_kernel = _C.active_isa(), True
        kernel = f"activity kernel {ACTIVITY_KERNEL_VERSION}, {in_torch}"  # which steps along the gradient
    elif backend.name == "cpu" and _C is not None and in_kernels and has_memory(config.model):
        isa, has_kernel, kernel = _C.active_isa(), True, f"{_MEMORY_KERNEL} {MEMORY_KERNEL_VERSION}"
        if config.stateful:
            kernel += f", states of {in_torch}"
    else:
        isa, kernel = torch.backends.cpu.get_cpu_capability().lower(), in_torch
        if config.stateful and backend.name == "cpu" and _C is not None and is_fused:
            in_torch += f", states of kernel {kernel_version(_C.active_isa())} on {_C.active_isa()}"
    return {
        "backend": backend.name,
        "isa": isa,
        "precision": config.precision,
        "forward": kernel if has_kernel else in_torch,
        "zo_kernels": package_version(),
    }


def as_terms(config: TrainConfig) -> Arithmetic:
    """The arithmetic of this process, but for what is a flag, by the names that a message about ranks gives to it."""
    return {NAMES[key]: value for key, value in arithmetic_of(config).items() if key != "precision"}


def check_run(run: Path, config: TrainConfig, model: LanguageModel) -> None:
    """Raises UsageError if the config would go on with other losses than the steps of a run so far had."""
    if not config.allow_other_arithmetic:
        now = arithmetic_of(config, model)
        # torch computed the models with a memory when there was no record yet
        before = {**now, "forward": "torch"} if now["forward"].startswith(_MEMORY_KERNEL) else None
        check_arithmetic(run, now, "give --allow-other-arithmetic", unrecorded=before)
