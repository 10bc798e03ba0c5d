"""Writes and reads safetensors files that hold a digest of their content."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .files import open_regular, write_atomically


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, companion: str = ""
) -> None:
    """Writes a safetensors file as `write_atomically` does, and adds `digest` to its metadata.

    companion: digest of a file that belongs to this one, which `companion_of` returns. It is written behind the other,
    since safetensors writes several metadata in any order, and the same tensors are to be the same file.

    Raises CheckpointError if the file can't be written.
    """
    on_cpu = _apart({name: as_saved(x) for name, x in tensors.items()})
    held = dict(metadata or {})
    held["digest"] = _digest(held, on_cpu) + (f"-{companion}" if companion else "")
    try:
        write_atomically(path, lambda unfinished: safetensors.torch.save_file(on_cpu, unfinished, held))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error


def load_tensors(path: Path, *, follow: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads the metadata and the tensors of a regular file. follow: as for `open_regular`.

    Raises SafetensorError if the file is not of that format, and OSError if it can't be read. `check_digest` finds out
    whether its content is what was written.
    """
    # It is read once before safetensors maps it to memory, where an error of the disk would be a signal. Besides,
    # safetensors would wait for a pipe, and its errors give no reason.
    with open(open_regular(path, follow=follow), "rb", buffering=0) as raw:
        while raw.read(1 << 20):
            pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except RuntimeError as error:  # of torch, which opens the file once more
        raise OSError(errno.EIO, str(error).splitlines()[0], str(path)) from error
    return metadata, tensors


def check_digest(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if the digest is that of another content. Files of version 0.1 may have no digest."""
    held = {name: value for name, value in metadata.items() if name != "digest"}
    if "digest" in metadata and metadata["digest"].split("-")[0] != _digest(held, tensors):
        raise CheckpointError(f"{path} is damaged: its content is not what was written")


def companion_of(metadata: Mapping[str, str]) -> str | None:
    """The companion's digest in the metadata of a file, or None if there is none, as in older files."""
    return metadata.get("digest", "").partition("-")[2] or None


def as_saved(x: Tensor) -> Tensor:
    """A contiguous tensor on the CPU, as safetensors needs it."""
    return x.detach().cpu().contiguous()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with copies of those that share memory with one before, as tied weights do: safetensors refuses."""
    seen: set[int] = set()
    found = {}
    for name, x in tensors.items():
        place = x.untyped_storage().data_ptr()
        found[name] = x.clone() if place in seen else x
        seen.add(place)
    return found


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        x = as_saved(tensors[name])
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data if x.numel() else b"")
    return digest.hexdigest()
