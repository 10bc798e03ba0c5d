"""What the figures depend on: the machine and the versions. Called in a worker, for it imports torch."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

FLASHRNN_MISSING = (
    "flashrnn is not installed (install its wheel, or unpack it into a folder on PYTHONPATH: docs/gpu.md says how)"
)


def describe(device: str) -> dict[str, Any]:
    """{"machine": facts, "missing": packages that are not there, with a sentence}, or {"error": a sentence}."""
    try:
        import torch
    except ImportError as error:
        return {"error": f"torch can't be imported ({error}): run this with the Python that has it"}
    if device == "cuda" and not torch.cuda.is_available():
        return {
            "error": "torch finds no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES, or rehearse with "
            "--device cpu"
        }
    import zo_kernels as zo
    from zo_kernels.backends import cpu, get_backend

    try:
        get_backend("cpu")  # what results are compared with
        get_backend(device)
    except RuntimeError as error:
        return {"error": f"{error}; bench.gpu builds nothing: docs/gpu.md says how"}
    machine = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu rehearsal",
        "memory_gb": round(torch.cuda.mem_get_info()[1] / 1e9, 1) if device == "cuda" else None,
        "driver": _driver() if device == "cuda" else None,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": _installed("triton"),
        "flashrnn": _installed("flashrnn"),
        "zo_kernels": zo.__version__,
        "kernels_built_by": f"{cpu._C.compiler}; {cpu._C.cuda_build() or 'no nvcc'}",
        "numpy": _installed("numpy"),
        "python": platform.python_version(),
    }
    missing = {} if machine["flashrnn"] else {"flashrnn": FLASHRNN_MISSING}
    try:
        get_backend("triton")
    except (ValueError, RuntimeError) as error:
        missing["triton"] = str(error)
    return {"machine": machine, "missing": missing}


def _installed(package: str) -> str | None:
    if find_spec(package) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    found = re.search(r"[\d.]+", said)
    return found.group() if found else None
