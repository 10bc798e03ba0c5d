"""Compiles Triton's kernels as a launch would, but for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.device_code import Kernel, read
from zo_kernels.backends.triton import TritonBackend

BACKEND = TritonBackend()


class Driver:
    """What Triton asks of a driver before it launches, answered for a device that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return -self.capability  # not a device whose kernels another test would launch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


class Compiler:
    """Compiles what a call of the backend would launch, and does not launch it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction

        self._folder, self._driver, run = folder, driver, JITFunction.run
        self._launched: list[Any] = []

        def compile_only(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
            assert all(size > 0 for size in grid)
            self._launched.append(run(kernel, *args, grid=grid, warmup=True, **kwargs))

        monkeypatch.setattr(JITFunction, "run", compile_only)
        monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))

    def compiled(self, capability: int, launch: str | Callable[..., object], *args: object) -> Any:
        """Triton's compiled kernel. launch: a function that launches it, or the name of the backend's method."""
        (kernel,) = self._all_compiled(capability, launch, *args)
        return kernel

    def __call__(self, capability: int, launch: str | Callable[..., object], *args: object) -> Kernel:
        (kernel,) = self.kernels(capability, launch, *args)
        return kernel

    def kernels(self, capability: int, launch: str | Callable[..., object], *args: object) -> list[Kernel]:
        """As a call, for a function that launches several kernels: each of them once."""
        path, found = self._folder / "kernel.cubin", []
        for compiled in {id(kernel): kernel for kernel in self._all_compiled(capability, launch, *args)}.values():
            path.write_bytes(compiled.asm["cubin"])
            found += read(path)
        return found

    def _all_compiled(self, capability: int, launch: str | Callable[..., object], *args: object) -> list:
        before = dict(vars(self._driver))
        self._driver.set_active(Driver(capability))
        try:
            (getattr(BACKEND, launch) if isinstance(launch, str) else launch)(*args)
            return list(self._launched)
        finally:
            vars(self._driver).clear()
            vars(self._driver).update(before)
            self._launched.clear()
