"""The flags of `python -m zo_kernels.generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..command_line import flag, option
from ..errors import UsageError


@dataclass(frozen=True)
class GenerateConfig:
    """Continue a text, character by character, with a model that python -m zo_kernels.train has trained."""

    run: Annotated[Path, option("FOLDER")]
    """Folder of the training run: config.json, vocabulary.json and weights.safetensors are read from it."""
    prompt: Annotated[str, option("TEXT", "required, unless a state is loaded")] = ""
    """Text to continue; it is printed first. Write --prompt=TEXT if it begins with a dash."""
    tokens: int = 200
    """Characters to generate; 0 only reads the prompt."""
    temperature: float = 1.0
    """Divides the logits: below 1 likely characters become likelier still; 0 always takes the likeliest."""
    top_k: Annotated[int | None, option("INT", "default: all")] = None
    """Choose among this many of the likeliest characters only."""
    seed: int = 0
    """Seed of the choices; the same command prints the same text."""
    threads: int = 1
    """CPU threads; more than one pays only for large models."""
    save_state: Annotated[Path | None, option("FILE", "optional")] = None
    """Where to save the state after the prompt, to go on from it later without reading the prompt again."""
    load_state: Annotated[Path | None, option("FILE", "optional")] = None
    """A saved state of the same weights to start from; a prompt continues the text that it was saved after."""


def parse(arguments: Sequence[str]) -> GenerateConfig:
    """The config that command-line arguments ask for. Prints help or a parse error and exits, as tyro does.

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
