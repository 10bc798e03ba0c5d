"""Gathers the facts that decide which of flashrnn's backends can run on this machine."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")
"""Headers that flashrnn's sources include, mostly through torch's headers."""

_INCLUDE_VARIABLES = ("FLASHRNN_EXTRA_INCLUDE_PATHS", "CUDA_INC_PATH", "CPATH", "CPLUS_INCLUDE_PATH")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder, its release, and the missing ones of the headers that flashrnn needs."""

    home: str
    release: tuple[int, int]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Facts about a device and its software. The defaults are those of a CPU."""

    device_type: str = "cpu"
    capability: tuple[int, int] = (0, 0)
    torch_cuda: tuple[int, int] | None = None
    """The CUDA release that torch was built for, or None if it was built without CUDA."""
    toolkit: Toolkit | None = None
    ninja: bool = False
    triton: tuple[int, int] | None = None


@functools.cache
def gather(device: torch.device) -> Facts:
    """The facts about `device`, looked up once per process."""
    if device.type != "cuda":
        return Facts(device.type)
    return Facts(
        device_type="cuda",
        capability=torch.cuda.get_device_capability(device),
        torch_cuda=_release(torch.version.cuda),
        toolkit=find_toolkit(),
        ninja=shutil.which("ninja") is not None,
        triton=_triton_release(),
    )


@functools.cache
def find_toolkit() -> Toolkit | None:
    """The toolkit in CUDA_HOME, or else of the nvcc on PATH, which may be a wrapper outside the toolkit."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home, "bin", "nvcc") if home else Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    if not nvcc.exists():
        return None
    if not home:
        top = re.search(r"^#\$ TOP=(.+)$", _run_nvcc(nvcc, "--dryrun", "-v", "-c", "x.cu"), re.MULTILINE)
        home = str(Path(top.group(1).strip() if top else nvcc.parent.parent).resolve())
    release = re.search(r"release (\d+\.\d+)", _run_nvcc(nvcc, "--version"))
    missing = tuple(header for header in _HEADERS if not any((path / header).exists() for path in _include_paths(home)))
    return Toolkit(home, _release(release.group(1) if release else None) or (0, 0), missing)


def _run_nvcc(nvcc: Path, *arguments: str) -> str:
    result = subprocess.run([str(nvcc), *arguments], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def _include_paths(home: str) -> list[Path]:
    paths = [Path(home, "include"), *Path(home, "targets").glob("*/include")]
    for variable in _INCLUDE_VARIABLES:
        paths += [Path(path) for path in os.environ.get(variable, "").split(":") if path]
    if conda := os.environ.get("CONDA_PREFIX"):
        paths += [Path(conda, "include"), *Path(conda, "targets").glob("*/include")]
    return paths


def _release(text: str | None) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(found.group(1)), int(found.group(2))) if found else None


def _triton_release() -> tuple[int, int] | None:
    for distribution in ("triton", "pytorch-triton"):  # torch's nightly builds use the second
        try:
            return _release(version(distribution))
        except PackageNotFoundError:
            continue
    return None
