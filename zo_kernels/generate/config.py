"""The flags of `python -m zo_kernels.generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..command_line import flag, option
from ..errors import UsageError


@dataclass(frozen=True)
class GenerateConfig:
    """Continue a text with a model trained by python -m zo_kernels.train."""

    run: Annotated[Path, option("FOLDER")]
    """Folder of the training run, with its config.json, vocabulary.json and weights.safetensors."""
    step: Annotated[int | Literal["best"] | None, option("INT|best", "default: the last one")] = None
    """Step whose checkpoint to take the weights of; best: where the loss was lowest, in a run with --keep best."""
    prompt: Annotated[str, option("TEXT", "required without --load-state")] = ""
    """Text to continue, which is printed first. Write --prompt=TEXT if it begins with a dash."""
    tokens: int = 200
    """Number of tokens to generate, which are characters by default; 0 only reads the prompt."""
    temperature: float = 1.0
    """Sampling temperature. Lower values favour likely characters; 0 always takes the likeliest."""
    top_k: Annotated[int | None, option("INT", "default: all")] = None
    """Sample only from this many of the likeliest characters."""
    seed: int = 0
    """Seed of the sampling. The same command prints the same text."""
    threads: int = 1
    """CPU threads. More than one helps with large models only."""
    allow_import: bool = False
    """Import the model if it is code outside zo_kernels. That runs it: look at the run's config.json before."""
    raw: bool = False
    """Print control characters as they are. By default they are shown as escapes, such as \\x1b, for a terminal obeys
    them; newlines, carriage returns and tabs are always printed."""
    save_state: Annotated[Path | None, option("FILE", "optional")] = None
    """File to save the state after the prompt to, so that it can be continued later without reading it again."""
    load_state: Annotated[Path | None, option("FILE", "optional")] = None
    """Saved state to start from, of the same weights. A prompt continues the text after which it was saved."""


def parse(arguments: Sequence[str]) -> GenerateConfig:
    """Returns the config that command-line arguments ask for. Prints help or a parse error, and exits.

    Raises UsageError as `check` does.
    """
    config = tyro.cli(GenerateConfig, prog="python -m zo_kernels.generate", args=arguments)
    check(config)
    return config


def check(config: GenerateConfig) -> None:
    """Raises UsageError for a value out of range, and if there is nothing to start from."""
    for name, least in (("tokens", 0), ("top_k", 1), ("threads", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UsageError(f"{flag(name)} must be at least {least}, not {value}")
    if not (math.isfinite(config.temperature) and config.temperature >= 0):
        raise UsageError(f"--temperature must be finite and at least 0, not {config.temperature}")
    if not 0 <= config.seed < 2**64:
        raise UsageError(f"--seed must be in [0, 2^64), not {config.seed}")
    if not config.prompt and config.load_state is None:
        raise UsageError("there is nothing to continue: give --prompt a text, or --load-state a saved state")
