"""Saves decoding states to files, so that a long prompt is read once and continued often."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..run.tensors import check_digest, load_tensors, save_tensors
from .decoding import DecodingState
from .run import LoadedRun

_FORMAT = "zo_kernels decoding state"
_VERSION = "1"


def save_state(path: str | Path, state: DecodingState, run: LoadedRun) -> None:
    """Saves a state of the run's model to a safetensors file, which is never seen half-written.

    Its tensors are `logits` [1, V] and the model's states by their names (`state_names`), for a batch of one. Its
    metadata are `format`, `version`, `model`, `weights_sha256` and `digest`, that of all the rest. An earlier state of
    that name is replaced.

    Raises UsageError if the file can't be written, or exists and is not a state.
    """
    path = Path(path)
    check_target(path)
    named = dict(zip(run.model.state_names, state.states, strict=True), logits=state.logits)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()
    }
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": run.model.name,
        "weights_sha256": run.weights_sha256,
    }
    try:
        save_tensors(path, tensors, metadata)
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def load_state(path: str | Path, run: LoadedRun) -> DecodingState:
    """Loads a state that `save_state` wrote for the same weights.

    Raises UsageError if the file can't be read, is not a state, or belongs to other weights than the run's.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    if metadata["version"] != _VERSION:
        raise UsageError(f"{path} is a state of format version {metadata['version']}, but this one reads {_VERSION}")
    if metadata["weights_sha256"] != run.weights_sha256:
        raise UsageError(f"{path} is a state of other weights than those of {run.path}: save it again with these")
    try:
        check_digest(path, metadata, tensors)
    except CheckpointError as error:
        raise UsageError(f"{error}, save it again") from error
    states = run.model.initial_states(1)
    names = run.model.state_names
    expected = dict(zip(names, (state.shape for state in states), strict=True), logits=(1, run.model.vocab_size))
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {k: tuple(v) for k, v in expected.items()}:
        raise UsageError(f"{path} is damaged: its tensors don't fit its weights, save it again")
    return DecodingState(tuple(tensors[name] for name in names), tensors["logits"])


def check_target(path: Path) -> None:
    """Raises UsageError if a state can't be saved there: there is no such folder, or a file that is not a state."""
    if not path.parent.is_dir():
        raise UsageError(f"can't write {path}: there is no folder {path.parent}")
    if not os.path.lexists(path):
        return
    try:
        _read(path)
    except UsageError as error:
        raise UsageError(f"{path} exists and is not a saved state: give a new name") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns the metadata and the tensors of a state of any version."""
    try:
        metadata, tensors = load_tensors(path, follow=True)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except SafetensorError as error:
        raise UsageError(f"{path} is not a saved state ({error})") from error
    if metadata.get("format") != _FORMAT or not {"version", "weights_sha256"} <= metadata.keys():
        raise UsageError(f"{path} is not a saved state: it was not written by --save-state")
    return metadata, tensors
