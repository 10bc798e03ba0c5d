"""What a run is made of: the flags of `python -m zo_kernels.train`, their meaning, and their defaults for each task."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..backends.base import PRECISIONS
from ..models import MODELS
from ..tasks import TASKS


class UsageError(Exception):
    """The user asked for what can't be done; the message is one sentence that says why."""


def shown(metavar: str, default: str | None = None) -> Any:
    """How --help shows a flag's value, and what it says of the default where the default does not say it itself."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default)


def _for_some_tasks(field: str, metavar: str = "INT", unset: str = "") -> Any:
    """A flag that only some tasks know: --help names them, and shows the default if it is about one of them.

    unset: what to say of the default if it is None for all tasks.
    """

    def hint(default: str) -> str:
        tasks = [task for task in TASKS if field in inspect.signature(TASKS[task]).parameters]
        if len(tasks) > len(TASKS) // 2:
            others = [task for task in TASKS if task not in tasks]
            known_to = f"not for {', '.join(others)}"
        else:
            known_to = f"{', '.join(tasks)} only"
        said = unset if default == "None" else f"default: {default}"
        return f"({known_to}; {said})" if said else f"({known_to})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a recurrent network from forward passes alone: CD-RGE, central differences along random probes.

    The defaults shown are those of one task: --task text --help shows those of another.
    """

    task: Annotated[str, shown("{" + ",".join(TASKS) + "}")]
    """What to learn: a rule, from random letters or digits; one batch by heart; or the next token of a text."""
    data: Annotated[Path | None, _for_some_tasks("data", "PATH", unset="required")] = None
    """A text file (text); the folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt (ptb); or a file to keep tokens
    in, which is made if there is none (owt)."""
    dataset: Annotated[str | None, _for_some_tasks("dataset", "NAME")] = None
    """Hugging Face dataset with a column text, on the Hub or in a folder."""
    tokenizer: Annotated[str | None, _for_some_tasks("tokenizer", "NAME")] = None
    """Hugging Face tokenizer, on the Hub or in a folder."""
    max_tokens: Annotated[int | None, _for_some_tasks("max_tokens")] = None
    """Most tokens to take from the dataset."""
    context_length: Annotated[int | None, _for_some_tasks("context_length")] = None
    """Tokens of a training sequence; a token is a character, but for owt."""
    max_length: Annotated[int | None, _for_some_tasks("max_length")] = None
    """Most letters, or digits of a number, in training."""
    longer_length: Annotated[int | None, _for_some_tasks("longer_length", unset="default: twice --max-length")] = None
    """Most letters in the validation set of longer examples, which begins above --max-length."""
    alphabet_size: Annotated[int | None, _for_some_tasks("alphabet_size")] = None
    """Different letters, or digits, there are."""
    max_repeats: Annotated[int | None, _for_some_tasks("max_repeats")] = None
    """Most times to write the letters."""
    curriculum: Annotated[int | None, _for_some_tasks("curriculum")] = None
    """Steps over which training lengths, or the scored part of the context, grow from 1 to all; 0: none."""

    embed_dim: int
    """Size of a token's embedding."""
    hidden_size: int
    """Size of the hidden state, all heads together."""
    batch_size: int
    """Sequences in a batch; all forward passes of a step see the same batch."""
    lr: float
    """Learning rate of the first step."""
    eps: float
    """How far a probe moves every parameter, up and down, to measure the slope of the loss."""
    steps: int
    """Updates of the parameters."""

    cell: Annotated[str, shown("{" + ",".join(MODELS) + "}")] = "lstm"
    """What a head of the recurrent layer computes."""
    num_heads: int = 1
    """Blocks of the block-diagonal recurrence; must divide the hidden size."""
    probes: int = 96
    """Random directions n of a step, which takes 2n forward passes and makes one update."""
    lr_decay: float = 0.05
    """Factor that the learning rate falls to over the run, in a straight line; 1 keeps it constant."""
    micro_batch_size: Annotated[int | None, shown("INT", "(default: the whole batch)")] = None
    """Sequences evaluated at once, for a batch that does not fit the memory; losses are those of the whole batch."""
    weight_decay: float = 0.0
    """Decoupled weight decay: a step also shrinks the parameters by lr times this."""
    seed: int = 0
    """Seed of the initial parameters, the batches and the probes; the same seed gives the same run."""
    validate_every: int = 50
    """Steps from one validation to the next."""
    out: Annotated[Path | None, shown("FOLDER", "(default: runs/TASK-DATE-TIME)")] = None
    """New or empty folder for config.json, vocabulary.json, metrics.jsonl, weights.safetensors and loss.png."""
    device: Annotated[str, shown("{cpu,cuda}")] = "cpu"
    """Where the model runs."""
    threads: Annotated[int | None, shown("INT", "(default: one per core)")] = None
    """CPU threads; the results do not depend on their number."""
    precision: Annotated[str, shown("{" + ",".join(PRECISIONS) + "}")] = "float32"
    """Of the forward passes' products: bfloat16 is faster on a processor that has it, and needs an eps of 2^-k."""
    backend: Annotated[str, shown("NAME")] = "auto"
    """Kernels for the probes: auto takes the fastest that works, python -m zo_kernels lists them."""


_LETTERS = TrainConfig(
    task="copy",
    max_length=5,
    alphabet_size=4,
    curriculum=0,
    embed_dim=16,
    hidden_size=64,
    batch_size=64,
    lr=0.3,
    eps=0.03,
    steps=800,
)
_CHARACTERS = TrainConfig(
    task="text",
    context_length=10,
    curriculum=0,
    embed_dim=64,
    hidden_size=64,
    batch_size=64,
    lr=1.0,
    eps=0.05,
    steps=800,
)
DEFAULTS = {
    "copy": _LETTERS,
    "reverse": replace(_LETTERS, task="reverse"),
    "sort": replace(_LETTERS, task="sort"),
    "repeat-copy": replace(_LETTERS, task="repeat-copy", max_length=3, max_repeats=3),
    "add": replace(_LETTERS, task="add", max_length=2, alphabet_size=10, lr=0.6, steps=1000),
    "rolling-sum": replace(_LETTERS, task="rolling-sum", alphabet_size=10, lr=1.0),
    "overfit": replace(
        _LETTERS, task="overfit", max_length=None, curriculum=None, context_length=100, alphabet_size=26, batch_size=1
    ),
    "text": _CHARACTERS,
    "ptb": replace(_CHARACTERS, task="ptb"),
    "owt": replace(
        _CHARACTERS,
        task="owt",
        dataset="Skylion007/openwebtext",
        tokenizer="gpt2",
        max_tokens=10_000_000,
        batch_size=8,
        lr=0.2,
        probes=32,
        steps=100,
    ),
}
"""The config of each task that no flag has changed. Each trains in under two minutes on two cores.

The paper ties eps to lr; an eps ten or twenty times smaller learns much faster on all tasks.
"""

_TASK_OPTIONS = (
    "data",
    "dataset",
    "tokenizer",
    "max_tokens",
    "context_length",
    "max_length",
    "longer_length",
    "alphabet_size",
    "max_repeats",
    "curriculum",
)
"""Fields that are for some tasks only."""


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The config that command-line arguments ask for. Prints help or a parse error and exits, as tyro does.

    Raises UsageError if there is no such task, and as `check` does.
    """
    program = "python -m zo_kernels.train"
    task_parser = argparse.ArgumentParser(program, f"{program} [-h] [OPTIONS]", add_help=False, allow_abbrev=False)
    task_parser.add_argument("--task", default="copy")  # first, for the other defaults depend on it
    task = task_parser.parse_known_args(arguments)[0].task
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    config = tyro.cli(TrainConfig, prog=program, default=DEFAULTS[task], args=arguments)
    check(config)
    return config


def check(config: TrainConfig) -> None:
    """Refuses what the constructors of the task, the model and the optimizer can't know to be wrong.

    Raises UsageError for a flag that the task needs or does not know, and for a value of the run itself out of range.
    """
    known = inspect.signature(TASKS[config.task]).parameters
    for name in _TASK_OPTIONS:
        if name in known and known[name].default is not None and getattr(config, name) is None:
            raise UsageError(f"the task {config.task} needs {flag(name)}")
        if name not in known and getattr(config, name) is not None:
            raise UsageError(f"{flag(name)} does not apply to the task {config.task}")
    for name in ("steps", "validate_every", "threads", "micro_batch_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag(name)} must be at least 1, not {value}")
    if config.cell not in MODELS:
        raise UsageError(f"unknown cell {config.cell!r}: choose one of {', '.join(MODELS)}")
    if config.precision == "bfloat16" and math.frexp(config.eps)[0] != 0.5:
        raise UsageError(
            f"--precision bfloat16 needs an --eps that is a power of two, such as 0.03125, not {config.eps}"
        )
    if not 0 < config.lr_decay <= 1:
        raise UsageError(f"--lr-decay must be above 0 and at most 1, not {config.lr_decay}")
    if not 0 <= config.seed < 2**64:
        raise UsageError(f"--seed must be in [0, 2^64), not {config.seed}")
    if config.device not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {config.device!r}: choose cpu or cuda")


def task_options(config: TrainConfig) -> dict[str, Any]:
    """The keywords that the constructor of the config's task takes: each is named like its flag."""
    return {name: getattr(config, name) for name in inspect.signature(TASKS[config.task]).parameters}


def flag(field: str) -> str:
    """The command line's spelling of a field."""
    return "--" + field.replace("_", "-")
