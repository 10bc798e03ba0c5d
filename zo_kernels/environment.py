"""Says what this installation of zo_kernels can do on this machine."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from .backends import BACKENDS
from .backends.base import Backend
from .backends.cpu import _C


def show_config() -> None:
    """Prints what was built, which instruction set is used, which backends work and why the others do not."""
    found = describe()
    lines = [
        ("zo_kernels", found["zo_kernels"]),
        ("Python", found["python"]),
        ("torch", f"{found['torch']}, {found['threads']} threads"),
        *_build_lines(found["build"]),
        *((f"backend {name}", problem or "works") for name, problem in found["backends"].items()),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def describe() -> dict[str, Any]:
    """Returns what `show_config` prints, as values that JSON has.

    zo_kernels, python, torch: versions. threads: torch's number of threads. backends: by name, why it can't be used, or
    None if it works. build: None if the compiled module is missing, or else a dict.

    Its compiler: name and version. isas: the instruction sets that were built. isa: the one in use, or None.
    isa_problem: why there is none. isa_forced_by: the value of ZO_KERNELS_ISA, or None. bfloat16: whether the processor
    has such products. openmp: whether torch's OpenMP was found. cuda: what the CUDA kernels were built with, or None.
    cuda_device: the GPU, or why there is none.
    """
    import zo_kernels

    return {
        "zo_kernels": zo_kernels.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "build": _describe_build(),
        "backends": {name: _problem_of(backend) for name, backend in BACKENDS.items()},
    }


def _problem_of(backend: Backend) -> str | None:
    try:
        return backend.unavailable()
    except RuntimeError as error:
        return str(error)


def _describe_build() -> dict[str, Any] | None:
    if _C is None:
        return None
    isa, problem, bfloat16 = None, None, False
    try:
        isa, bfloat16 = _C.active_isa(), _C.has_bfloat16()
    except RuntimeError as error:
        problem = str(error)
    try:
        device = _C.cuda_device()
    except RuntimeError as error:
        device = str(error)
    return {
        "compiler": _C.compiler,
        "isas": list(_C.compiled_isas()),
        "isa": isa,
        "isa_forced_by": os.environ.get("ZO_KERNELS_ISA") or None,
        "isa_problem": problem,
        "bfloat16": bfloat16,
        "openmp": _C.has_openmp(),
        "cuda": _C.cuda_build() or None,
        "cuda_device": device,
    }


def _build_lines(build: dict[str, Any] | None) -> list[tuple[str, str]]:
    if build is None:
        return [("compiled module", "missing; install the package with `pip install .`")]
    running = f"{build['isa']}{' (forced by ZO_KERNELS_ISA)' if build['isa_forced_by'] else ''}"
    no_bfloat16 = "no: they need AVX512_BF16" if build["isa"] else "no"
    return [
        ("compiler", build["compiler"]),
        ("instruction sets built", ", ".join(build["isas"])),
        ("instruction set running", running if build["isa"] else f"none: {build['isa_problem']}"),
        ("bfloat16 products", "yes" if build["bfloat16"] else no_bfloat16),
        ("OpenMP", "torch's" if build["openmp"] else "not found in this process: kernels run on one thread"),
        ("CUDA built", build["cuda"] or "no: no nvcc from CUDA 11.8 on was used when zo_kernels was installed"),
        ("CUDA device", build["cuda_device"]),
    ]
