"""What a population may take of a GPU's memory, on a GPU that is only said to be there."""

from typing import cast

import pytest
import torch

from zo_kernels.backends.base import RecurrentWeights
from zo_kernels.backends.recurrent import memory


def test_the_budget_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six copies of the parameters, or a little memory; of what is free, and what torch keeps without using it."""
    megabyte, gigabyte = 1 << 20, 1 << 30

    class OnGpu:
        def __init__(self, numel: int, dtype: torch.dtype, device: str = "cuda:0") -> None:
            self.device, self.dtype, self._numel = torch.device(device), dtype, numel

        def numel(self) -> int:
            return self._numel

    def budget(numel: int, dtype: torch.dtype = torch.float32, device: str = "cuda:0") -> int:
        x = cast(torch.Tensor, OnGpu(numel, dtype, device))
        return memory.population_bytes(RecurrentWeights("lstm", (0,) * 6, *(x,) * 6))

    assert budget(100, device="cpu") == memory.CPU_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * gigabyte, 80 * gigabyte))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * gigabyte)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * gigabyte)
    assert budget(1000) == 384 * megabyte
    assert budget(10 * megabyte) == budget(10 * megabyte, torch.bfloat16) == 6 * 4 * 6 * 10 * megabyte
    assert budget(10 * megabyte, torch.float64) == 6 * 8 * 6 * 10 * megabyte
    assert budget(gigabyte) == 6 * gigabyte - (256 << 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 80 * gigabyte))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * gigabyte)
    assert budget(1000) == 0
