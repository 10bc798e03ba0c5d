"""The machine code of the streamed forward for GPUs that need not be there: tensor cores, no spills, and room for the
blocks that share a multiprocessor."""

from __future__ import annotations

import os

import pytest

from tests.backends.ahead_of_time import Compiler
from tests.backends.recurrent.streamed_code import streamed_forward
from tests.device_code import Kernel, cuobjdump
from zo_kernels.backends.recurrent.streamed_plan import tiles_for

pytestmark = [
    pytest.mark.skipif(cuobjdump() is None, reason="no Triton, or one without cuobjdump"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled for the interpreter"),
]

TENSOR_CORES = {80: "HMMA.*", 90: "HGMMA.*", 100: "UTCHMMA.*", 120: "HMMA.*"}
"""The instruction that multiplies matrices of 16-bit numbers, by compute capability."""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Compiler(tmp_path_factory.mktemp("triton"), monkeypatch)


def assert_good(found: list[Kernel], capability: int, cell: str, dim: int) -> None:
    instruction = TENSOR_CORES[capability]
    for kernel in found:
        print(f"{kernel.registers} registers, {kernel.count(instruction)} {instruction}: {kernel}")
        assert kernel.stack + kernel.local + kernel.count(r"(LDL|STL)\b.*") == 0, f"{kernel} spills registers"
    steps = [kernel for kernel in found if kernel.name == "time_step"]
    products = [kernel for kernel in found if kernel.count(instruction)]
    assert len(found) == 6 + 2 + 1
    assert {kernel.name for kernel in products} == {"time_step", "project"}
    assert len(steps) == len(products) == 2  # the first step has no product
    for step in steps:
        # A cell of an LSTM takes five exponentials and two divisions. A thread has 16 or 32 cells.
        cells = 32 if tiles_are_wide(capability, dim) else 16
        assert step.registers <= (255 if cells == 32 else 128)
        assert step.count(r"MUFU\b.*") <= {"lstm": 7, "gru": 6, "elman": 2}[cell] * cells + 3
        bytes_of_table = cells * (2 if cell == "elman" else 8)
        assert step.count(r"LDG\.E\b.*\.128\b.*") >= bytes_of_table // 16


def tiles_are_wide(capability: int, dim: int) -> bool:
    return tiles_for(dim, divmod(capability, 10)).units == 64


@pytest.mark.parametrize("capability", TENSOR_CORES)
def test_tensor_cores_and_no_spills(compiler: Compiler, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_good(streamed_forward(compiler, capability, "lstm", 150, monkeypatch), capability, "lstm", 150)


@pytest.mark.parametrize(
    ("capability", "cell", "dim"),
    [
        *((capability, "lstm", dim) for capability in TENSOR_CORES for dim in (300, 850)),
        *((90, "lstm", dim) for dim in (16, 64)),
        *((capability, cell, 300) for capability in (80, 90) for cell in ("gru", "elman")),
    ],
)
@pytest.mark.slow
def test_other_heads_and_cells(
    compiler: Compiler, capability: int, cell: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_good(streamed_forward(compiler, capability, cell, dim, monkeypatch), capability, cell, dim)
