"""How the ops are launched: 64-bit indices, torch's current stream, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import zo_kernels as zo
from tests.cases import SEEDS, assert_same_bits, make_values

_LARGE = {"cuda": (2**31 + 1000, 2**31), "cpu": (60_000, 50_048)}
"""Elements, and where the high half of the block index changes."""

_MEMBERS = {"cuda": (2**29 + 1000, 65_540), "cpu": (20_000, 100)}
"""Elements of each of four members, and a number of probes."""

_WINDOW = 5000
_PIECE = 1 << 28
"""Elements looked at together."""


def large(device: str, backend: str) -> dict[str, Any]:
    """More than 2^31 elements of bfloat16."""
    numel, edge = _LARGE[device]
    offset = 2**39 - edge - 384
    starts = [start - start % 128 for start in (0, edge // 2 - 2048, edge - 2048, edge + 256, numel - 128)]

    def moved(x: Tensor, at: int) -> Tensor:
        zo.ops.apply_probe_(x, 0.5, 3, offset=at)
        zo.ops.swap_probe_(x, -0.5, 3, 0.25, 5, offset=at)
        return zo.ops.accumulate_probes_(x, [0.0625], [7], offset=at, decay=0.5)

    x = torch.zeros(numel, dtype=torch.bfloat16, device=device)
    with zo.backend(backend):
        moved(x, offset)
        out = zo.ops.apply_probe(x, 0.5, 9, offset=offset)
    with zo.backend("cpu"):
        for start in starts:
            part = slice(start, start + _WINDOW)
            expected = moved(torch.zeros_like(x[part], device="cpu"), offset + start)
            assert_same_bits(x[part].cpu(), expected, f"in place from {start}")
            expected = zo.ops.apply_probe(expected, 0.5, 9, offset=offset + start)
            assert_same_bits(out[part].cpu(), expected, f"from {start}")
    for first in range(0, numel, _PIECE):  # everything was written once: (+-0.25) * 0.5 +- 0.0625
        sizes = x[first : first + _PIECE].abs()
        written = int((sizes == 0.1875).sum()) + int((sizes == 0.0625).sum())
        assert written == len(sizes), f"{len(sizes) - written} elements from {first} were not written exactly once"
    return {"elements": numel}


def large_members(device: str, backend: str) -> dict[str, Any]:
    """apply_probes with more than 2^31 elements of output, and with more probes than a grid has rows."""
    numel, probes = _MEMBERS[device]
    x = torch.zeros(numel, dtype=torch.float32, device=device)
    with zo.backend(backend):
        out = zo.ops.apply_probes(x, 0.5, SEEDS[:2], offset=128, dtype=torch.bfloat16)
    with zo.backend("cpu"):
        for start in (0, numel // 2 // 128 * 128, (numel - 1) // 128 * 128):
            part = slice(start, start + _WINDOW)
            zeros = torch.zeros_like(x[part], device="cpu")
            expected = zo.ops.apply_probes(zeros, 0.5, SEEDS[:2], offset=128 + start, dtype=torch.bfloat16)
            assert_same_bits(out[..., part].cpu(), expected, f"apply_probes from {start}")
    seeds = torch.arange(probes)
    values = make_values(130, torch.float32)
    with zo.backend(backend):
        many = zo.ops.apply_probes(values.to(device), 0.5, seeds)
    with zo.backend("cpu"):
        assert_same_bits(many.cpu(), zo.ops.apply_probes(values, 0.5, seeds), f"{len(seeds)} probes")
    return {"elements": out.numel(), "probes": len(seeds)}


def _all_ops(x: Tensor, offset: int) -> Tensor:
    """x after each op that writes."""
    zo.ops.apply_probe_(x, 0.25, 3, offset=offset)
    zo.ops.apply_probe(x, 0.25, 4, offset=offset, out=x)
    zo.ops.swap_probe_(x, 0.5, 5, -0.25, 6, offset=offset)
    zo.ops.accumulate_probes_(x, [0.5, -0.125], [7, 8], offset=offset, decay=0.5)
    x.copy_(zo.ops.apply_probes(x, 0.5, [9, 10], offset=offset)[1, 1])
    return x.add_(zo.ops.probe(x.numel(), 11, offset=offset, device=x.device))


def stream(device: str, backend: str) -> dict[str, Any]:
    """The ops run on torch's current stream: after what is queued there, which takes a while."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    with zo.backend("cpu"):
        expected = _all_ops(values.clone(), 256)
    side = torch.cuda.Stream()
    with zo.backend(backend):
        _all_ops(values.to(device, copy=True), 256)  # whatever a first call compiles
        x, source = torch.zeros(100_000, device=device), values.to(device, copy=True)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second
            x.copy_(source)
            _all_ops(x, 256)
        side.synchronize()
    assert_same_bits(x.cpu(), expected, "on a side stream")
    return {}


def graph(device: str, backend: str) -> dict[str, Any]:
    """apply_probes in a CUDA graph: a replay reads x, alpha and the seeds anew."""
    x, alpha = torch.zeros(70_001, device=device), torch.zeros(1, dtype=torch.float64, device=device)
    seeds = torch.zeros(3, dtype=torch.int64, device=device)
    out = torch.empty(3, 2, len(x), dtype=torch.bfloat16, device=device)

    def call() -> None:
        zo.ops.apply_probes(x, alpha, seeds, offset=384, out=out)

    with zo.backend(backend):
        replay = _recorded(call)
    for turn in range(4):
        new_x = make_values(len(x), torch.float32, seed=turn)
        new_seeds = torch.tensor([turn, -turn - 1, 2**63 - 1 - turn])
        x.copy_(new_x)
        seeds.copy_(new_seeds)
        alpha.fill_(2.0**-turn)
        out.fill_(float("nan"))
        replay()
        with zo.backend("cpu"):
            expected = zo.ops.apply_probes(new_x, 2.0**-turn, new_seeds, offset=384, dtype=out.dtype)
        assert_same_bits(out.cpu(), expected, f"replay {turn}")
    return {"replays": 4}


def _recorded(call: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        call()
    replay: Callable[[], None] = recording.replay
    return replay
