"""Which backend is chosen, for every fact that decides, and the sentences that say why one can't be."""

import dataclasses

import pytest
import torch

from tests.models.flashrnn.stand_in import GPU
from zo_kernels.models.flashrnn import choice
from zo_kernels.models.flashrnn.choice import BACKENDS, CELLS, choose, obstacle
from zo_kernels.models.flashrnn.facts import Facts, Toolkit

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
CUDA_12 = dataclasses.replace(GPU, torch_cuda=(12, 8), toolkit=Toolkit("/opt/cuda", (12, 6)))


def gpu(**changed: object) -> Facts:
    return dataclasses.replace(GPU, **changed)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("head_dim", [1, 24, 64, 1024])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("facts", [GPU, CUDA_12], ids=["CUDA 13", "CUDA 12"])
def test_cuda_is_chosen_for_every_shape(cell: str, head_dim: int, dtype: torch.dtype, facts: Facts) -> None:
    chosen = choose(cell, head_dim, dtype, facts)
    assert (chosen.name, chosen.automatic, chosen.compiles) == ("cuda", True, True)


@pytest.mark.parametrize("cell", CELLS)
def test_vanilla_is_chosen_on_the_cpu_and_for_float64(cell: str) -> None:
    assert choose(cell, 64, FLOAT32, Facts()).name == "vanilla"
    assert not choose(cell, 64, FLOAT32, Facts()).compiles
    chosen = choose(cell, 64, FLOAT64, GPU)
    assert (chosen.name, chosen.reason) == ("vanilla", "cuda can't be used: it does not support torch.float64")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (Facts(), "it needs a CUDA device, not cpu"),
        (gpu(torch_cuda=None), "this torch was not built for CUDA"),
        (gpu(capability=(7, 5)), "it needs compute capability 8.0 or newer, and this device has 7.5"),
        (
            gpu(toolkit=None),
            "no nvcc was found to compile it: install the CUDA toolkit, or set CUDA_HOME to its folder",
        ),
        (
            gpu(torch_cuda=(12, 9)),
            "torch was built for CUDA 12, but the toolkit in /opt/cuda is CUDA 13: set CUDA_HOME to one of the same "
            "major release",
        ),
        (
            gpu(toolkit=Toolkit("/opt/cuda", (13, 0), ("cublas_v2.h", "cusparse.h"))),
            "the CUDA toolkit in /opt/cuda lacks cublas_v2.h, cusparse.h: install all of it",
        ),
        (gpu(ninja=False), "ninja, which compiles it, is not on PATH"),
    ],
)
@pytest.mark.parametrize("name", ["cuda", "cuda_fused"])
def test_what_keeps_the_cuda_sources_from_being_compiled(facts: Facts, message: str, name: str) -> None:
    assert obstacle(name, "lstm", 64, FLOAT32, facts) == message
    assert choose("lstm", 64, FLOAT32, facts).name == "vanilla"
    assert choose("lstm", 64, FLOAT32, facts).reason == f"cuda can't be used: {message}"
    with pytest.raises(RuntimeError) as info:
        choose("lstm", 64, FLOAT32, facts, backend=name)
    assert str(info.value) == f"flashrnn's backend {name!r} can't be used: {message}"


@pytest.mark.parametrize(
    ("cell", "head_dim", "facts", "message"),
    [
        ("gru", 64, CUDA_12, "it has no GRU (flashrnn would run cuda instead)"),
        ("lstm", 24, CUDA_12, "its heads must have a multiple of 16 units, not 24"),
        ("lstm", 64, GPU, "flashrnn 1.0.8 reads device properties that CUDA 13 has removed"),
    ],
)
def test_cuda_fused(cell: str, head_dim: int, facts: Facts, message: str) -> None:
    assert obstacle("cuda_fused", cell, head_dim, BFLOAT16, facts) == message
    assert obstacle("cuda", cell, head_dim, BFLOAT16, facts) is None
    with pytest.raises(RuntimeError, match="can't be used"):
        choose(cell, head_dim, BFLOAT16, facts, backend="cuda_fused")
    assert choose("elman", 48, BFLOAT16, CUDA_12, backend="cuda_fused").name == "cuda_fused"


@pytest.mark.parametrize(
    ("cell", "head_dim", "triton", "message"),
    [
        ("gru", 64, (3, 8), "it supports only lstm and slstm, not gru"),
        ("elman", 64, (3, 8), "it supports only lstm and slstm, not elman"),
        ("lstm", 8, (3, 8), "its heads must have 16, 32 or 64 units, not 8"),
        ("lstm", 48, (3, 8), "its heads must have 16, 32 or 64 units, not 48"),
        ("slstm", 128, (3, 8), "its heads must have 16, 32 or 64 units, not 128"),
        ("lstm", 64, (3, 9), "it uses block pointers, which Triton 3.9 no longer has"),
        ("lstm", 64, (4, 0), "it uses block pointers, which Triton 4.0 no longer has"),
        ("lstm", 64, None, "Triton is not installed"),
        ("lstm", 16, (3, 8), None),
        ("slstm", 64, (3, 3), None),
    ],
)
def test_triton_fused(cell: str, head_dim: int, triton: tuple[int, int] | None, message: str | None) -> None:
    facts = gpu(triton=triton, toolkit=None)  # it needs no toolkit
    assert obstacle("triton_fused", cell, head_dim, BFLOAT16, facts) == message
    assert choose(cell, head_dim, BFLOAT16, facts).name == "vanilla"  # it is only taken by name


def test_a_cuda_graph_can_not_have_cuda() -> None:
    chosen = choose("lstm", 64, FLOAT32, GPU, captured=True)
    assert chosen.name == "vanilla"
    assert "a CUDA graph can't record" in chosen.reason
    with pytest.raises(RuntimeError, match="it waits for the device in every call, which a CUDA graph can't record"):
        choose("lstm", 64, FLOAT32, GPU, backend="cuda", captured=True)
    assert choose("lstm", 64, BFLOAT16, GPU, backend="triton_fused", captured=True).name == "triton_fused"


def test_one_asked_for_by_name() -> None:
    for name in ("cuda", "vanilla", "triton_fused"):
        chosen = choose("lstm", 64, BFLOAT16, GPU, backend=name)
        assert (chosen.name, chosen.reason, chosen.automatic) == (name, "requested", False)
    with pytest.raises(
        ValueError, match="unknown flashrnn backend 'fused': choose one of cuda, vanilla, cuda_fused, tri"
    ):
        choose("lstm", 64, FLOAT32, GPU, backend="fused")
    assert set(choice._AUTOMATIC) < set(BACKENDS)


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("vanilla", FLOAT32, []),
        ("cuda", FLOAT32, ["compiles"]),
        ("cuda", FLOAT16, ["compiles", "summed in float16"]),
        ("cuda_fused", BFLOAT16, ["compiles", "copied"]),
        ("cuda_fused", FLOAT32, ["compiles", "copied", "TF32"]),
        ("triton_fused", BFLOAT16, ["copied", "NaN"]),
        ("triton_fused", FLOAT32, ["copied", "TF32", "NaN"]),
    ],
)
def test_what_is_said_of_each(name: str, dtype: torch.dtype, expected: list[str]) -> None:
    notes = choose("lstm", 64, dtype, CUDA_12, backend=name).notes
    assert len(notes) == len(expected)
    assert all(word in note for word, note in zip(expected, notes, strict=True))
