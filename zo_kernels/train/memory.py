"""Whether a run can fit into memory, asked before anything of it is allocated or written."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from ..command_line import flag
from ..errors import UsageError
from ..models import LanguageModel
from .config import TrainConfig

_COPIES = {"adamw": 4, "sgd": 2}
"""Tensors as large as the parameters that back-propagation keeps: the parameters, gradients and moments."""


def check_memory(config: TrainConfig, build: Callable[[], LanguageModel], device: str) -> None:
    """Refuses a model or a batch that can't fit.

    What is compared is the least that a step needs, so a run that passes may still run out of memory.

    build: builds the model on the device "meta", where nothing is allocated. device: "cpu" or "cuda", for the model;
        batches are made in the CPU's memory.

    Raises UsageError.
    """
    model = _parameter_bytes(build) * (1 if config.solver == "zo" else _COPIES[config.optimizer])
    rows = min(config.batch_size, config.micro_batch_size or config.batch_size)
    units = config.num_layers * config.hidden_size + (config.memory_slots or 0) * (config.memory_width or 0)
    states = 4 * rows * units
    free = available_memory() if device == "cpu" else torch.cuda.mem_get_info()[0]
    sizes = ", ".join(flag(name) for name in ("hidden_size", "embed_dim"))
    _compare(model, free, f"the model and what {config.solver} keeps of it", f"lower {sizes}")
    _compare(states, free, "the states of a batch", "lower --batch-size, or give --micro-batch-size")
    tokens = 16 * config.batch_size * max(config.context_length or 1, config.max_length or 1)
    _compare(
        tokens, available_memory(), "the tokens of a batch", "lower --batch-size, --context-length or --max-length"
    )


def available_memory() -> int:
    """Returns how many bytes this process can still allocate: the least that the machine, its cgroup and RLIMIT_AS say.

    2^63 if none of them says anything.
    """
    found = [1 << 63]
    with suppress(OSError, ValueError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        kilobytes = {words[0]: int(words[1]) for words in lines}
        found.append((kilobytes["MemAvailable:"] + kilobytes["SwapFree:"]) * 1024)
    with suppress(OSError, ValueError):  # "max" is not a number
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with suppress(OSError, ValueError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(limit - pages * resource.getpagesize())
    return max(min(found), 0)


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has had so far, in MB (10^6 bytes).

    peak_rss_mb: resident on the CPU. peak_vram_mb: of torch's tensors on the GPU, only if that is the device.
    """
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError, ValueError, KeyError):  # unlike getrusage, not that of the process that started this one
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        resident = int({words[0]: words[1] for words in lines if len(words) > 1}["VmHWM:"]) * 1024
    found = {"peak_rss_mb": resident / 1e6}
    if device.type == "cuda":
        found["peak_vram_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return {name: round(size, 1) for name, size in found.items()}


def _parameter_bytes(build: Callable[[], LanguageModel]) -> int:
    try:
        model = build()
    except RuntimeError as error:  # its size overflows
        raise UsageError(f"the model is too large: {error}") from error
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _compare(needed: int, free: int, what: str, advice: str) -> None:
    if needed > free:
        raise UsageError(f"{what} take at least {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free: {advice}")
