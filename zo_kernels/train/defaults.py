"""The default config of each task, and configs made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import MODEL_NAMES, find_model
from ..models.presets import PRESETS
from ..tasks import find_task
from .config import FIELD_TYPES, TrainConfig, check_type, read_config

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
_OWN = replace(_LETTERS, max_length=None, alphabet_size=None, curriculum=None)
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
    "pairs": replace(_LETTERS, task="pairs", max_length=256, alphabet_size=None, curriculum=None),
    "series": replace(
        _CHARACTERS,
        task="series",
        context_length=24,
        curriculum=None,
        embed_dim=8,
        hidden_size=32,
        batch_size=32,
        probes=48,
        lr=0.1,
        eps=0.01,
        steps=600,
    ),
}
"""The default config of each task. Each trains in under two minutes on two cores.

The paper ties eps to lr. An eps ten or twenty times smaller than lr learns much faster on all tasks.
"""

_DEFAULT_PARAMETERS = 21_000
"""Approximate size of the models for which the tasks' learning rates and eps were chosen."""


def default_config(task: str | None = None, *, preset: str | None = None, **changes: Any) -> TrainConfig:
    """Returns the default config of a task, with changes.

    task: as `--task`; "copy" if None.
    preset: sizes of a model of the paper, as `--preset`.
    changes: values of other fields of `TrainConfig`. `resume=FOLDER` and `fork=FOLDER` take the values of that run
        instead of the task's defaults. `lr="search"` looks for a learning rate, as `--lr search` does.

    Raises UsageError for an unknown task, preset or field, and for a run that can't be read. Values are checked when
    the run starts.
    """
    unknown = changes.keys() - {field.name for field in fields(TrainConfig)}
    if unknown:
        raise UsageError(f"TrainConfig has no field {min(unknown)!r}")
    if changes.get("lr") == "search":
        del changes["lr"]
        changes["lr_search"] = True
    base = base_config(task, changes.get("model"), preset, changes.get("resume"), changes.get("fork"))
    return replace(base, **changes)


def base_config(
    task: str | None, model: str | None, preset: str | None, resume: Path | None, fork: Path | None
) -> TrainConfig:
    """Returns the values of the fields that are not given: those of a run, or a task's, a model's and a preset's.

    Raises UsageError for an unknown task, model or preset, and for a run that can't be read or has another task.
    """
    if resume is not None and fork is not None:
        raise UsageError("--resume continues a run, and --fork starts a new one: give one of them")
    run = resume if fork is None else fork
    if run is None:
        return _with_preset(_defaults_of(task or "copy", model), preset)
    stored = replace(read_config(Path(run)), allow_other_arithmetic=False, allow_import=False)
    if task not in (None, stored.task):
        raise UsageError(f"the task of {run} is {stored.task}, not {task}")
    if fork is not None:
        stored = replace(stored, out=None, fork=None, fork_step=None)
    return stored if preset is None else replace(stored, preset=preset)


def _defaults_of(task: str, model: str | None) -> TrainConfig:
    """The defaults of a task, and those of a model of the user's own, which come first if the model was asked for."""
    if task in DEFAULTS:
        config, own = DEFAULTS[task], dict[str, Any]()
    else:
        config, own = _OWN, _own_defaults(task, find_task)
    if model is None:
        values = {**_model_defaults(own.get("model", config.model)), **own}
    else:
        values = {**own, **_model_defaults(model), "model": model}
    return replace(config, **{**values, "task": task})


def _model_defaults(model: Any) -> dict[str, Any]:
    return {} if model in MODEL_NAMES or not isinstance(model, str) else _own_defaults(model, find_model)


def _own_defaults(name: str, find: Callable[[str], Any]) -> dict[str, Any]:
    """The `defaults` of a class of the user's own. Raises UsageError if there is none, or they are not flags."""
    try:
        own = getattr(find(name), "defaults", {})
    except ValueError as error:
        raise UsageError(str(error)) from error
    unknown = own.keys() - FIELD_TYPES.keys() if isinstance(own, Mapping) else {"no dict"}
    if unknown:
        raise UsageError(f"the defaults of {name} must be a dict with the names of flags, not {min(unknown, key=str)}")
    for field, value in own.items():
        try:
            check_type(field, value)
        except UsageError as error:
            raise UsageError(f"in the defaults of {name}, {error}") from error
    return dict(own)


def _with_preset(config: TrainConfig, name: str | None) -> TrainConfig:
    """Takes the sizes of a preset, and lowers lr by the square root of the factor by which the model is larger.

    eps falls by its fourth root, as the square root of the width does, so that a probe moves pre-activations by as much
    as in a smaller model. It becomes a power of two, as bfloat16 products need.
    """
    if name is None:
        return config
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    share = _DEFAULT_PARAMETERS / preset.parameters
    return replace(
        config,
        preset=name,
        lr=float(f"{config.lr * math.sqrt(share):.2g}"),
        eps=2.0 ** round(math.log2(config.eps * share**0.25)),
        model=preset.model,
        embed_dim=preset.embed_dim,
        hidden_size=preset.hidden_size,
        num_heads=preset.num_heads,
        num_layers=preset.num_layers,
        memory_slots=preset.memory_slots,
        memory_width=preset.memory_width,
    )
