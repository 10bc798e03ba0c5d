"""Checkpoints: bit for bit what was saved, or an error."""

import math
import os
import re
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zo_kernels.errors import CheckpointError
from zo_kernels.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def example() -> Checkpoint:
    layer = nn.Linear(5, 3)
    solver = {
        "groups": [{"lr": 0.1, "eps": None, "betas": (0.9, 0.999), "on": True}],
        "state": {0: {"m": torch.arange(7.0), "step": torch.tensor(3.0)}, 1: {}},
        "seed": 2**64 - 1,
        "tiny": 5e-324,
        "bfloat16": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, dtype=torch.int64),
        "transposed": torch.arange(6.0).view(2, 3).t(),
    }
    return Checkpoint(12, layer.state_dict(), solver, b"\x00\xff")


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_it_comes_back(tmp_path: Path) -> None:
    saved = example()
    save_checkpoint(tmp_path / "c.safetensors", saved)
    found = load_checkpoint(tmp_path / "c.safetensors")
    assert (found.step, found.journal) == (saved.step, saved.journal)
    assert equal(dict(saved.model), dict(found.model))
    assert equal(saved.solver, found.solver)
    assert os.listdir(tmp_path) == ["c.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "c.safetensors").stat().st_mode) == 0o666 & ~umask


def test_infinite_and_missing_numbers_come_back(tmp_path: Path) -> None:
    saved = example()._replace(solver=[math.inf, None, -0.0, "é"])
    save_checkpoint(tmp_path / "c", saved)
    assert load_checkpoint(tmp_path / "c").solver == [math.inf, None, 0.0, "é"]


def test_what_it_can_t_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a checkpoint can't hold a set"):
        save_checkpoint(tmp_path / "c", example()._replace(solver={"a": {1}}))
    assert not any(tmp_path.iterdir())


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, example())
    data = path.read_bytes()
    for at in range(0, len(data), 13):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda path: None, "can't be read"),
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.mkdir(), "can't be read"),
        (lambda path: save_file({"a": torch.ones(1)}, path), "is not a checkpoint of zo_kernels"),
        (
            lambda path: save_file({"a": torch.ones(1)}, path, {"format": "zo_kernels checkpoint", "version": "7"}),
            "version 7",
        ),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path: Path, prepare: Callable[[Path], object], sentence: str) -> None:
    prepare(tmp_path / "c")
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(tmp_path / "c")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, example())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="can't write"):
            save_checkpoint(path, example()._replace(solver=torch.ones(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c"]


def test_the_file_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"replace {a.name} {b.name}"), replace(a, b)))
    save_checkpoint(tmp_path / "c", example())
    unfinished = done[0].removeprefix("sync ")
    assert re.fullmatch(r"\.c\.[0-9a-f]{8}", unfinished)
    assert done == [f"sync {unfinished}", f"replace {unfinished} c", f"sync {tmp_path.name}"]
