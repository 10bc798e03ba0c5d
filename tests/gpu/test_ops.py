"""The ops of each backend for GPUs: bit for bit those of the CPU, and launched as torch has it.

What can be is done on the CPU too, against the reference and with small sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.backends import list_checks
from tests.backends.op_checks import CHECKS, Place
from tests.cases import SEEDS, assert_same_bits, each_device, make_values, right_beside
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.pieces import Pieces
from zo_kernels.ops.lists import accumulate_probes_list, apply_probe_list

ON_GPU = [pytest.param(backend, marks=pytest.mark.gpu) for backend in ("cuda", "triton", "reference")]


@pytest.fixture
def device(backend: str) -> str:
    """Of this backend's tensors."""
    if (reason := BACKENDS[backend].unavailable()) is not None:
        pytest.skip(reason)
    return "cpu" if backend == "cpu" else "cuda"


@pytest.mark.parametrize("backend", ["cpu", *ON_GPU])
@pytest.mark.parametrize("name", CHECKS)
def test_every_case(name: str, backend: str, device: str) -> None:
    CHECKS[name](Place(backend, device, right_beside(device), thorough=device == "cuda"))


@pytest.mark.parametrize("backend", ["cpu", *ON_GPU])
@pytest.mark.parametrize("name", list_checks.CHECKS)
def test_every_list(name: str, backend: str, device: str) -> None:
    list_checks.CHECKS[name](Place(backend, device, right_beside(device), thorough=device == "cuda"))


@pytest.mark.parametrize("backend", ["cpu", *ON_GPU[:2]])
def test_more_than_2_31_elements(backend: str, device: str) -> None:
    """Bit for bit where indices and the block index outgrow 32 bits; everywhere, each element written once."""
    numel, edge = (2**31 + 1000, 2**31) if device == "cuda" else (60_000, 50_048)
    offset = 2**39 - edge - 384

    def moved(x: Tensor, at: int) -> Tensor:
        zo.ops.apply_probe_(x, 0.5, 3, offset=at)
        zo.ops.swap_probe_(x, -0.5, 3, 0.25, 5, offset=at)
        return zo.ops.accumulate_probes_(x, [0.0625], [7], offset=at, decay=0.5)

    x = torch.zeros(numel, dtype=torch.bfloat16, device=device)
    with zo.backend(backend):
        out = zo.ops.apply_probe(moved(x, offset), 0.5, 9, offset=offset)
    with zo.backend(right_beside(device)):
        for start in (0, edge // 2 - 2048, edge - 2048, edge + 256, numel - 128):
            start -= start % 128
            part = slice(start, start + 5000)
            expected = moved(torch.zeros_like(x[part], device="cpu"), offset + start)
            assert_same_bits(x[part].cpu(), expected, f"in place from {start}")
            expected = zo.ops.apply_probe(expected, 0.5, 9, offset=offset + start)
            assert_same_bits(out[part].cpu(), expected, f"from {start}")
    for first in range(0, numel, 2**28):  # (+-0.25) * 0.5 +- 0.0625
        sizes = x[first : first + 2**28].abs()
        assert int((sizes == 0.1875).sum()) + int((sizes == 0.0625).sum()) == len(sizes), f"from {first}"


@pytest.mark.parametrize("backend", ["cpu", *ON_GPU[:2]])
def test_more_members_than_fit_32_bits_or_a_grid(backend: str, device: str) -> None:
    """apply_probes with more than 2^31 elements of output, and with more probes than a grid has rows."""
    numel, probes = (2**29 + 1000, 65_540) if device == "cuda" else (20_000, 100)
    x, seeds, values = torch.zeros(numel, device=device), torch.arange(probes), make_values(130, torch.float32)
    with zo.backend(backend):
        out = zo.ops.apply_probes(x, 0.5, SEEDS[:2], offset=128, dtype=torch.bfloat16)
        many = zo.ops.apply_probes(values.to(device), 0.5, seeds)
    with zo.backend(right_beside(device)):
        for start in (0, numel // 2 // 128 * 128, (numel - 1) // 128 * 128):
            zeros = torch.zeros_like(x[start : start + 5000], device="cpu")
            expected = zo.ops.apply_probes(zeros, 0.5, SEEDS[:2], offset=128 + start, dtype=torch.bfloat16)
            assert_same_bits(out[..., start : start + 5000].cpu(), expected, f"from {start}")
        assert_same_bits(many.cpu(), zo.ops.apply_probes(values, 0.5, seeds), f"{probes} probes")


@pytest.mark.parametrize("backend", ON_GPU[:2])
def test_torchs_current_stream(backend: str, device: str) -> None:
    """The ops wait for what is queued there, which takes a while."""

    def all_ops(x: Tensor) -> Tensor:
        zo.ops.apply_probe_(x, 0.25, 3, offset=256)
        zo.ops.apply_probe(x, 0.25, 4, offset=256, out=x)
        zo.ops.swap_probe_(x, 0.5, 5, -0.25, 6, offset=256)
        zo.ops.accumulate_probes_(x, [0.5, -0.125], [7, 8], offset=256, decay=0.5)
        pieces = Pieces([x[:50_048], x[50_048:]], [256, 50_304])
        apply_probe_list(pieces, pieces, 0.25, 12, "rademacher")
        accumulate_probes_list(pieces, torch.ones(1).double(), torch.ones(1).long(), "rademacher")
        x.copy_(zo.ops.apply_probes(x, 0.5, [9, 10], offset=256)[1, 1])
        return x.add_(zo.ops.probe(x.numel(), 11, offset=256, device=x.device))

    values, side = torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.cuda.Stream()
    with zo.backend("cpu"):
        expected = all_ops(values.clone())
    with zo.backend(backend):
        all_ops(values.to(device, copy=True))  # whatever a first call compiles
        x, source = torch.zeros(100_000, device=device), values.to(device, copy=True)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second
            all_ops(x.copy_(source))
        side.synchronize()
    assert_same_bits(x.cpu(), expected)


def captured(op: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        op()
    return graph


@pytest.mark.parametrize("backend", ON_GPU[:2])
def test_a_graph_moves_a_list(backend: str, device: str) -> None:
    """The use that compiles is the first of the list; a graph can't capture that."""
    values = [make_values(n, torch.float32) for n in (0, 70_001, 3, 4096)]
    x = Pieces([v.to(device, copy=True) for v in values], [128, 128, 70_144, 70_272])
    with zo.backend(backend):
        graph = captured(lambda: apply_probe_list(x, x, 0.25, 3, "rademacher"))
        for t, v in zip(x.tensors, values, strict=True):
            t.copy_(v)
        graph.replay()
    for t, v, offset in zip(x.tensors, values, x.offsets, strict=True):
        with zo.backend("cpu"):
            assert_same_bits(t.cpu(), zo.ops.apply_probe(v, 0.25, 3, offset=offset))


@pytest.mark.parametrize("backend", ON_GPU[:2])
def test_a_graph_reads_x_alpha_and_seeds_anew(backend: str, device: str) -> None:
    x, alpha = torch.zeros(70_001, device=device), torch.zeros(1, dtype=torch.float64, device=device)
    seeds = torch.zeros(3, dtype=torch.int64, device=device)
    out = torch.empty(3, 2, len(x), dtype=torch.bfloat16, device=device)
    with zo.backend(backend):
        graph = captured(lambda: zo.ops.apply_probes(x, alpha, seeds, offset=384, out=out))
    for turn in range(4):
        new_x, new_seeds = make_values(len(x), x.dtype, seed=turn), torch.tensor([turn, -turn - 1, 2**63 - 1 - turn])
        x.copy_(new_x)
        seeds.copy_(new_seeds)
        alpha.fill_(2.0**-turn)
        out.fill_(torch.nan)
        graph.replay()
        with zo.backend("cpu"):
            expected = zo.ops.apply_probes(new_x, 2.0**-turn, new_seeds, offset=384, dtype=out.dtype)
        assert_same_bits(out.cpu(), expected, f"replay {turn}")


@each_device
@pytest.mark.parametrize("name", ["rademacher", "normal", "uniform", "sparse-4"])
def test_distributions(name: str, device: str) -> None:
    """By the backend that is chosen for the device."""

    def drawn(device: str) -> list[Tensor]:
        x, coeffs = torch.linspace(-1, 1, 5000).to(device), torch.linspace(-0.5, 0.75, 17, dtype=torch.float64)
        probe = zo.ops.probe(5000, 7, offset=256, device=device, distribution=name)
        cast = zo.ops.apply_probe(x, 0.3, 8, dtype=torch.bfloat16, distribution=name)
        zo.ops.apply_probe_(x, 0.125, 9, offset=128, distribution=name)
        zo.ops.accumulate_probes_(x, coeffs, torch.arange(17), decay=0.99, distribution=name)
        return [probe, cast, x]

    with zo.backend(right_beside(device)):
        expected = drawn("cpu")
    for what, actual, wanted in zip(("probe", "cast", "x"), drawn(device), expected, strict=True):
        assert_same_bits(actual.cpu(), wanted, what)
