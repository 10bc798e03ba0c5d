"""Writes and reads checkpoints, which hold the parameters of a run and the state of its solver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from ..errors import CheckpointError
from .tensors import as_saved, check_digest, load_tensors, save_tensors

CHECKPOINT_FORMAT = "zo_kernels checkpoint"
_VERSION = "1"


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    step: number of steps taken. model: the model's state_dict. solver: the solver's state, any nesting of dictionaries,
    lists, tensors, numbers and strings. journal: digest of the journal's rows before `step`. run: digest with which the
    journal begins; empty in checkpoints of version 0.1.
    """

    step: int
    model: Mapping[str, Tensor]
    solver: Any
    journal: bytes
    run: bytes = b""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint as a safetensors file, atomically and synced to the disk.

    The tensors are named `model.NAME` and `solver.NUMBER`; everything else is in the metadata. Raises CheckpointError
    if the file can't be written; an earlier file of that name is then unchanged.
    """
    tensors = {f"model.{name}": as_saved(x) for name, x in checkpoint.model.items()}
    packed = pack(checkpoint.solver, tensors)
    metadata = {
        "format": CHECKPOINT_FORMAT,
        "version": _VERSION,
        "step": str(checkpoint.step),
        "journal": checkpoint.journal.hex(),
        "run": checkpoint.run.hex(),
        "solver": json.dumps(packed),
    }
    save_tensors(path, tensors, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError if the file can't be read or is damaged."""
    try:
        metadata, tensors = load_tensors(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"the checkpoint {path} can't be read: {reason}") from error
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of zo_kernels")
    if metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {metadata.get('version')}, but this zo_kernels reads version {_VERSION}"
        )
    if "digest" not in metadata:
        raise CheckpointError(f"the checkpoint {path} is damaged: it has no digest")
    try:
        check_digest(path, metadata, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"the checkpoint {error}") from error
    model = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
    try:
        solver = unpack(json.loads(metadata["solver"]), tensors)
        journal, run = bytes.fromhex(metadata["journal"]), bytes.fromhex(metadata.get("run", ""))
        return Checkpoint(int(metadata["step"]), model, solver, journal, run)
    except (KeyError, TypeError, ValueError, RecursionError) as error:  # written by another program
        raise CheckpointError(f"the checkpoint {path} is damaged: it does not hold the state of a solver") from error


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Makes a value JSON can hold: moves its tensors to `tensors` and refers to them by name. Raises TypeError."""
    if isinstance(value, Tensor):
        name = f"solver.{len(tensors)}"
        tensors[name] = as_saved(value)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [pack(v, tensors) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns what was packed. Raises KeyError, TypeError or ValueError for anything else."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {unpack(k, tensors): unpack(v, tensors) for k, v in value["items"]}
    return value
