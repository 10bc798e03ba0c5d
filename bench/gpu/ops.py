"""The ops on random numbers: bandwidth beside a copy, element-seeds a second, and the usual torch code."""

# ruff: noqa: B023 - calls are timed before their loop goes on

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

import zo_kernels as zo
from bench import usual
from zo_kernels.backends.pieces import Pieces
from zo_kernels.ops.lists import accumulate_probes_list, apply_probe_list

from .timing import Figure, compare, in_turns

_SIZES = {"cuda": {"1M": 10**6, "100M": 10**8, "1G": 10**9}, "cpu": {"1M": 10**4, "1G": 10**5}}
_DTYPES = (torch.float32, torch.bfloat16)
_EPS = 2.0**-10


def apply(device: str) -> Iterator[Figure]:
    """Each pass against a device-to-device copy, which reads and writes the same bytes."""
    for dtype in _DTYPES:
        for size, numel in _SIZES[device].items():
            x = torch.randn(numel, dtype=dtype, device=device)
            y = torch.empty_like(x)
            calls = {
                "copy": lambda: y.copy_(x),
                "apply_probe_": lambda: zo.ops.apply_probe_(x, _EPS, 3),
                "apply_probe": lambda: zo.ops.apply_probe(x, _EPS, 3, out=y),
                "swap_probe_": lambda: zo.ops.swap_probe_(x, _EPS, 3, -_EPS, 4),
                "probe": lambda: zo.ops.probe(len(x), 3, dtype=x.dtype, device=device),
            }
            times = in_turns(device, calls, rounds=10 if numel >= 10**8 else 50, flush=numel < 10**8)
            copy = times.pop("copy")
            for op, ms in times.items():
                bar = {"at_least": 0.9} if (op, size) == ("apply_probe_", "1G") else {}
                moved = (1 if op == "probe" else 2) * x.element_size() * numel
                figure = compare(f"{op}, {size} of {dtype}, of a copy's speed", ms, copy, **bar)
                yield {**figure, "GB/s": moved / figure["ours_ms"] / 1e6}


def accumulate(device: str) -> Iterator[Figure]:
    """On the largest size; with one seed it is bandwidth."""
    size, numel = list(_SIZES[device].items())[-1]
    for dtype in _DTYPES:
        x = torch.randn(numel, dtype=dtype, device=device)
        for count in (1, 16, 96, 512):
            rows = torch.full((count,), 2.0**-20, dtype=torch.float64), torch.arange(count)
            call = {"ours": lambda: zo.ops.accumulate_probes_(x, *rows)}
            ms = median(in_turns(device, call, rounds=5)["ours"])
            name, rate = f"accumulate_probes_, {count} seeds, {size} of {dtype}", numel * count / ms * 1e3
            bar = {"at_least": 5e12} if (dtype, count) == (torch.float32, 512) else {}
            yield {"name": name, "figure": rate, "unit": "element-seeds/s", "ours_ms": ms, **bar}


def over_usual(device: str) -> Iterator[Figure]:
    """Times faster than bernoulli_, mul_, sub_, add_ on the largest size, in float32."""
    numel, count, few = list(_SIZES[device].values())[-1], 512, 8  # of which the usual code would take seconds for all
    x, scratch, generator = *torch.randn(2, numel, device=device), torch.Generator(device)
    coeffs, seeds = torch.full((count,), 2.0**-20, dtype=torch.float64), torch.arange(count)
    some = coeffs.tolist()[:few], seeds.tolist()[:few]
    calls = {
        "apply": lambda: zo.ops.apply_probe_(x, _EPS, 3),
        "usual apply": lambda: usual.add_probe_(x, scratch, _EPS, 3, generator),
        "accumulate": lambda: zo.ops.accumulate_probes_(x, coeffs, seeds),
        "usual accumulate": lambda: usual.accumulate(x, scratch, *some, generator),
    }
    ms = in_turns(device, calls, rounds=5)
    yield compare("apply_probe_ over usual torch", ms["apply"], ms["usual apply"], unit="x", at_least=8)
    name = f"accumulate_probes_ over usual torch, {count} seeds, scaled from {few}"
    yield compare(name, ms["accumulate"], ms["usual accumulate"], count / few, unit="x", at_least=200)


def members(device: str) -> Iterator[Figure]:
    """apply_probes for 96 probes of a small model: what a population is made of."""
    x = torch.randn({"cuda": 150_260, "cpu": 1000}[device], device=device)
    seeds, alpha = torch.arange(96, device=device), torch.full((1,), _EPS, dtype=torch.float64, device=device)
    out = torch.empty(96, 2, len(x), device=device)
    call = {"ours": lambda: zo.ops.apply_probes(x, alpha, seeds, out=out)}
    ms = median(in_turns(device, call, rounds=50, flush=True)["ours"])
    yield {"name": "apply_probes, 96 of 150k", "figure": out.numel() * 4 / ms / 1e6, "unit": "GB/s", "ours_ms": ms}


def lists(device: str) -> Iterator[Figure]:
    """A list of 200 tensors of a small and of a large model against one tensor of as many elements: kernels alone."""
    rows = torch.full((96,), 2.0**-20, dtype=torch.float64), torch.arange(96)
    for size, numel in {"cuda": {"10M": 50_000, "1G": 5_000_000}, "cpu": {"1M": 500}}[device].items():
        flat = torch.randn(200 * numel, device=device)
        tensors = torch.randn(200, numel, device=device)
        one, many = Pieces([flat], [0]), Pieces(tensors.unbind(), [-(-numel // 128) * 128 * k for k in range(200)])
        for op, call in (
            ("apply", lambda x: apply_probe_list(x, x, _EPS, 3, "rademacher")),
            ("accumulate of 96 seeds", lambda x: accumulate_probes_list(x, *rows, "rademacher")),
        ):
            calls = {"list": lambda: call(many), "one": lambda: call(one)}
            times = in_turns(device, calls, rounds=20 if numel < 10**6 else 5, flush=numel < 10**6)
            yield compare(f"{op}: one tensor's time over that of 200, {size} in all", times["list"], times["one"])


def drawn(device: str) -> Iterator[Figure]:
    """Other distributions, on the largest size in float32: a pass beside a copy and normal_ with add_, and 16 rows."""
    size, numel = list(_SIZES[device].items())[-1]
    x, scratch, generator = *torch.randn(2, numel, device=device), torch.Generator(device)
    rows, names = (
        (torch.full((16,), 2.0**-20, dtype=torch.float64), torch.arange(16)),
        ("normal", "uniform", "sparse-4"),
    )
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: scratch.copy_(x),
        "usual": lambda: x.add_(scratch.normal_(generator=generator), alpha=_EPS),
        **{f"apply {name}": partial(zo.ops.apply_probe_, x, _EPS, 3, distribution=name) for name in names},
        **{f"sum {name}": partial(zo.ops.accumulate_probes_, x, *rows, distribution=name) for name in names},
    }
    ms = in_turns(device, calls, rounds=5)
    yield compare(f"apply_probe_ of normals over normal_ and add_, {size}", ms["apply normal"], ms["usual"], unit="x")
    for name in names:
        yield compare(f"apply_probe_, {name}, {size}, of a copy's speed", ms[f"apply {name}"], ms["copy"])
        took = median(ms[f"sum {name}"])
        rate = {"figure": numel * 16 / took * 1e3, "unit": "element-seeds/s", "ours_ms": took}
        yield {"name": f"accumulate_probes_, 16 seeds, {name}, {size}", **rate}
