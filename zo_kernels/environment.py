"""Prints what this installation of zo_kernels can do on this machine."""

from __future__ import annotations

import os
import platform

import torch

from .backends import BACKENDS
from .backends.base import Backend
from .backends.cpu import _C


def show_config() -> None:
    """Prints what was built, which instruction set is used, which backends work and why the others do not."""
    import zo_kernels

    lines = [
        ("zo_kernels", zo_kernels.__version__),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        *_build_lines(),
        *((f"backend {name}", _state_of(backend)) for name, backend in BACKENDS.items()),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def _state_of(backend: Backend) -> str:
    try:
        return backend.unavailable() or "works"
    except RuntimeError as error:
        return str(error)


def _build_lines() -> list[tuple[str, str]]:
    if _C is None:
        return [("compiled module", "missing; install the package with `pip install .`")]
    forced = os.environ.get("ZO_KERNELS_ISA")
    try:
        running = _C.active_isa() + (" (forced by ZO_KERNELS_ISA)" if forced else "")
        bfloat16 = "yes" if _C.has_bfloat16() else "no: they need AVX512_BF16"
    except RuntimeError as error:
        running = f"none: {error}"
        bfloat16 = "no"
    try:
        device = _C.cuda_device()
    except RuntimeError as error:
        device = str(error)
    return [
        ("compiler", _C.compiler),
        ("instruction sets built", ", ".join(_C.compiled_isas())),
        ("instruction set running", running),
        ("bfloat16 products", bfloat16),
        ("OpenMP", "torch's" if _C.has_openmp() else "not found in this process: kernels run on one thread"),
        ("CUDA built", _C.cuda_build() or "no: no nvcc was found when zo_kernels was installed"),
        ("CUDA device", device),
    ]
