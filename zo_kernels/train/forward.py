"""Which forward pass computes the losses of a run: what --forward asks for, what is refused, and what it is called."""

from __future__ import annotations

from ..backends import backend_for
from ..errors import UsageError
from ..models import LanguageModel, RecurrentLM
from ..models.cells import MODELS
from ..models.flashrnn.choice import CELLS
from ..tasks import reads_numbers
from .config import TrainConfig
from .options import FLASHRNN

_IN_TORCH = {"batched": "torch, the members of many probes as a batch", "reference": "the reference, in torch"}
"""What the header of a run calls the forwards in torch."""


def is_flash(config: TrainConfig) -> bool:
    """Whether the model is a `FlashLM`, which numbers its parameters in an order of its own."""
    return config.forward == FLASHRNN or (config.model not in MODELS and config.model in CELLS)


def check_forward(config: TrainConfig) -> None:
    """Refuses a forward that the model, or another flag, does not have. Raises UsageError."""
    forward = config.forward
    if forward == "auto":
        return
    if config.model not in CELLS or reads_numbers(config.task):
        what = f"the task {config.task}" if config.model in CELLS else f"the model {config.model}"
        raise UsageError(f"--forward {forward} is for texts and the models {', '.join(CELLS)}, not for {what}")
    if forward == FLASHRNN:
        return
    if config.model not in MODELS:
        raise UsageError(f"--forward {forward} does not have the model {config.model}: give --forward {FLASHRNN}")
    if config.distribution != "rademacher":
        raise UsageError(
            f"--forward {forward} has rademacher probes alone: leave --distribution {config.distribution} or "
            "--forward out"
        )
    if forward == "batched" and config.precision != "float32":
        raise UsageError(f"--forward batched has no {config.precision} products: leave --precision out")


def takes_populations(config: TrainConfig, model: LanguageModel) -> bool:
    """Whether the losses of a step are those of a population, or else of one probe after the other."""
    if config.solver != "zo" or config.distribution != "rademacher":
        return False
    # RecurrentLM's population is a kernel of the backend, that of the others at worst a batch of members in torch.
    at_once = backend_for(model.device.type).fused_forward or not isinstance(model, RecurrentLM)
    return at_once or config.forward != "auto"


def has_activity_kernel(config: TrainConfig, device: str) -> bool:
    """Whether a kernel computes the activity perturbation of a run on this type of device, or else torch."""
    return config.solver == "activity" and backend_for(device).name == "cpu"


def name_forward(config: TrainConfig, model: LanguageModel) -> str:
    """The forward pass of a population, by its `LanguageModel.forward_name`.

    Raises UsageError if there is none in this precision, or not the one that was asked for.
    """
    rows = min(config.batch_size, config.micro_batch_size or config.batch_size)
    try:
        return model.forward_name(rows, config.precision)
    except (RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error


def describe_forward(config: TrainConfig, model: LanguageModel) -> str:
    """What the header of a run says about its forward passes."""
    if config.solver == "activity":
        in_kernel = has_activity_kernel(config, model.device.type)
        return "the kernel of activity perturbation" if in_kernel else "torch"
    if config.solver != "zo":
        return "torch, and back-propagation through it"
    if not takes_populations(config, model):
        return "torch, one loss at a time"
    name = name_forward(config, model)
    if name == "kernel":
        name = "the fused kernel"
    elif is_flash(config):
        name = f"{name}, with its own numbering of the parameters"
    elif isinstance(model, RecurrentLM) and name != "torch":
        name = _IN_TORCH.get(name, f"the kernel {name}")
    return f"{name}; {config.precision} products"
