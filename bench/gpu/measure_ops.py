"""Rates of the ops, on random numbers: bandwidth beside a copy, element-seeds a second, and the usual torch code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import zo_kernels as zo
from bench import usual

from .timing import in_turns, ratio, summary

_SIZES = {"cuda": {"1M": 10**6, "100M": 10**8, "1G": 10**9}, "cpu": {"1M": 10**4, "1G": 10**5}}
_TINY = {"cuda": 150_260, "cpu": 1000}
"""Parameters of the model "100k"."""

_COUNTS = (1, 16, 96, 512)
_RIVALS_SEEDS = 8
"""Of 512: the usual code is linear in them, and takes seconds for all."""


def _rounds(numel: int) -> int:
    return 10 if numel >= 10**8 else 50


def apply(device: str, backend: str) -> dict[str, Any]:
    """apply_probe_ and its kin against a device-to-device copy, which moves the same bytes."""
    figures: dict[str, float] = {}
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, numel in _SIZES[device].items():
            x = torch.randn(numel, dtype=dtype, device=device)
            calls = _passes(x, torch.empty_like(x))
            with zo.backend(backend):
                times = in_turns(device, calls, rounds=_rounds(numel), warm_up=2, flush=numel < 10**8)
            short = f"{str(dtype).removeprefix('torch.')}, {name}"
            figures[f"of a copy, {short}"] = ratio(times["copy"], times["apply_probe_"])
            for op, seconds in times.items():
                moved = x.element_size() * numel * (1 if op == "probe" else 2)
                row = summary(seconds)
                rows.append({"op": op, "on": short, **row, "GB/s": round(moved / row["ms"] / 1e6, 1)})
    return {"figures": figures, "rows": rows}


def _passes(x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    small = 2.0**-10
    return {
        "copy": lambda: y.copy_(x),
        "apply_probe_": lambda: zo.ops.apply_probe_(x, small, 3),
        "apply_probe": lambda: zo.ops.apply_probe(x, small, 3, out=y),
        "swap_probe_": lambda: zo.ops.swap_probe_(x, small, 3, -small, 4),
        "probe": lambda: zo.ops.probe(x.numel(), 3, dtype=x.dtype, device=x.device),
    }


def members(device: str, backend: str) -> dict[str, Any]:
    """apply_probes for 96 probes of a small model: what a population is made of."""
    x = torch.randn(_TINY[device], device=device)
    seeds, alpha = torch.arange(96, device=device), torch.full((1,), 2.0**-7, dtype=torch.float64, device=device)
    out = torch.empty(96, 2, len(x), device=device)
    with zo.backend(backend):
        times = in_turns(device, {"ours": lambda: zo.ops.apply_probes(x, alpha, seeds, out=out)}, rounds=50, flush=True)
    row = summary(times["ours"])
    return {"figures": {"GB/s": round(out.numel() * 4 / row["ms"] / 1e6, 1)}, "rows": [row]}


def accumulate(device: str, backend: str) -> dict[str, Any]:
    """Element-seeds a second on the largest size; with one seed it is bandwidth."""
    figures: dict[str, float] = {}
    rows = []
    name, numel = list(_SIZES[device].items())[-1]
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(numel, dtype=dtype, device=device)
        for count in _COUNTS:
            coeffs, seeds = torch.full((count,), 2.0**-20, dtype=torch.float64), torch.arange(count)
            call = {"ours": lambda x=x, c=coeffs, s=seeds: zo.ops.accumulate_probes_(x, c, s)}
            with zo.backend(backend):
                row = summary(in_turns(device, call, rounds=5)["ours"])
            rate = numel * count / row["ms"] * 1e3
            short = str(dtype).removeprefix("torch.")
            rows.append({"on": f"{short}, {name}, {count} seeds", **row, "element-seeds/s": float(f"{rate:.4g}")})
            if dtype == torch.float32:
                figures[f"rate, {count}"] = float(f"{rate:.4g}")
    return {"figures": figures, "rows": rows}


def over_usual(device: str, backend: str) -> dict[str, Any]:
    """Times faster than bernoulli_, mul_, sub_, add_ on the largest size, in float32."""
    numel = list(_SIZES[device].values())[-1]
    x, scratch = torch.randn(numel, device=device), torch.empty(numel, device=device)
    generator = torch.Generator(device)
    count = _COUNTS[-1]
    coeffs, seeds = torch.full((count,), 2.0**-20, dtype=torch.float64), torch.arange(count)
    few = coeffs.tolist()[:_RIVALS_SEEDS], seeds.tolist()[:_RIVALS_SEEDS]
    figures, rows = {}, []
    pairs: dict[str, dict[str, Callable[[], object]]] = {
        "apply": {
            "ours": lambda: zo.ops.apply_probe_(x, 2.0**-10, 3),
            "usual": lambda: usual.add_probe_(x, scratch, 2.0**-10, 3, generator),
        },
        "accumulate": {
            "ours": lambda: zo.ops.accumulate_probes_(x, coeffs, seeds),
            "usual": lambda: usual.accumulate(x, scratch, *few, generator),
        },
    }
    for name, calls in pairs.items():
        with zo.backend(backend):
            times = in_turns(device, calls, rounds=5)
        if name == "accumulate":
            times["usual"] = [seconds * count / _RIVALS_SEEDS for seconds in times["usual"]]
        figures[name] = ratio(times["usual"], times["ours"])
        rows += [{"what": f"{name}, {who}", **summary(seconds)} for who, seconds in times.items()]
    return {
        "figures": figures,
        "rows": rows,
        "note": f"accumulate, usual: scaled from {_RIVALS_SEEDS} seeds to {count}",
    }
