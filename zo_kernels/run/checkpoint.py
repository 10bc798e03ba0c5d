"""Writes and reads checkpoints, which hold the parameters of a run and the state of its solver."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

_FORMAT = "zo_kernels checkpoint"
_VERSION = "1"


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    step: number of steps taken. model: the model's state_dict. solver: the solver's state, any nesting of dictionaries,
    lists, tensors, numbers and strings. journal: digest of the journal's rows before `step`.
    """

    step: int
    model: Mapping[str, Tensor]
    solver: Any
    journal: bytes


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint as a safetensors file, atomically and synced to the disk.

    The tensors are named `model.NAME` and `solver.NUMBER`; everything else is in the metadata. Raises CheckpointError
    if the file can't be written; an earlier file of that name is then unchanged.
    """
    tensors = {f"model.{name}": _on_cpu(x) for name, x in checkpoint.model.items()}
    packed = pack(checkpoint.solver, tensors)
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": str(checkpoint.step),
        "journal": checkpoint.journal.hex(),
        "solver": json.dumps(packed),
    }
    metadata["digest"] = _digest(metadata, tensors)
    write_atomically(path, tensors, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError if the file can't be read or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} can't be read: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of zo_kernels")
    if metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {metadata.get('version')}, but this zo_kernels reads version {_VERSION}"
        )
    if metadata.pop("digest", None) != _digest(metadata, tensors):
        raise CheckpointError(f"the checkpoint {path} is damaged: its content is not what was written")
    model = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
    solver = unpack(json.loads(metadata["solver"]), tensors)
    return Checkpoint(int(metadata["step"]), model, solver, bytes.fromhex(metadata["journal"]))


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, synced to the disk; it appears whole or not at all. Raises CheckpointError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.close(descriptor)  # created here for the umask's permissions, since safetensors would use 0600
            mode = unfinished.stat().st_mode
            safetensors.torch.save_file(
                {name: _on_cpu(x) for name, x in tensors.items()}, unfinished, dict(metadata or {})
            )
            unfinished.chmod(mode)
            _sync(unfinished)
            os.replace(unfinished, path)
            _sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _on_cpu(x: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as safetensors needs it."""
    return x.detach().cpu().contiguous()


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        x = _on_cpu(tensors[name])
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data if x.numel() else b"")
    return digest.hexdigest()


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Makes a value JSON can hold: moves its tensors to `tensors` and refers to them by name. Raises TypeError."""
    if isinstance(value, Tensor):
        name = f"solver.{len(tensors)}"
        tensors[name] = _on_cpu(value)
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
