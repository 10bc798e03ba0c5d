"""`python -m bench.gpu --device cpu`, and the plan for a GPU on a CPU that pretends to be one."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.tensor  # which torch loads late: not while its factories are replaced
from torch.overrides import TorchFunctionMode

import zo_kernels as zo
from bench.gpu import check_launch, check_ops, check_training, measure_ops, sizes
from bench.gpu.bars import BARS
from bench.gpu.plan import all_steps
from bench.gpu.report import judge
from bench.gpu.steps import Record
from tests.bench.test_gpu_checks import pretend_streams
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.cpu import CpuBackend

ROOT = Path(__file__).parents[2]


def gpu_day(*options):
    command = [sys.executable, "-m", "bench.gpu", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_rehearsal(tmp_path):
    results = ROOT / "bench" / "results"
    before = {path: path.stat().st_mtime for path in results.iterdir()}
    run = gpu_day("--device", "cpu", "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert {path: path.stat().st_mtime for path in results.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-rehearsal.json"]
    written = json.loads((tmp_path / "cpu-rehearsal.json").read_text())
    assert {"torch", "triton", "flashrnn", "python", "kernels_built_by"} <= set(written["machine"])
    assert {record["status"] for record in written["steps"].values()} == {"passed", "measured"}
    assert list(written["steps"]) == [step.name for step in all_steps("cpu")]
    assert {bar["verdict"] for bar in written["bars"] if "measured" in bar} == {"rehearsed"}
    assert sum("measured" in bar for bar in written["bars"]) >= 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this would be its day")
def test_without_a_gpu():
    run = gpu_day()
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        "bench.gpu: torch finds no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES, or rehearse with "
        "--device cpu\n"
    )


class CudaIsCpu(TorchFunctionMode):
    """Where a torch function is given the device "cuda", it gets the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*map(on_cpu, args), **{key: on_cpu(value) for key, value in (kwargs or {}).items()})


def on_cpu(value):
    if isinstance(value, str) and value == "cuda":
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


@pytest.fixture
def pretended(monkeypatch):
    """A CPU that pretends to be a GPU of 200 GB, with models and tensors small enough for it."""
    pretend_streams(monkeypatch)
    make_generator = torch.Generator
    for name, value in {
        "Event": Event,
        "empty_cache": lambda: None,
        "memory_allocated": lambda: 10**6,
        "max_memory_allocated": lambda: 3 * 10**6,
        "reset_peak_memory_stats": lambda: None,
        "mem_get_info": lambda *device: (40 * 10**9, 200 * 10**9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": make_generator(on_cpu(device)))
    for name in ("cuda", "triton"):
        backend = CpuBackend()
        monkeypatch.setattr(backend, "name", name, raising=False)
        monkeypatch.setitem(BACKENDS, name, backend)
    monkeypatch.setattr(check_launch, "_recorded", lambda call: call)
    for table in (check_ops._CASES, check_launch._LARGE, check_launch._MEMBERS, check_training._STEPS):
        monkeypatch.setitem(table, "cuda", table["cpu"])
    monkeypatch.setitem(measure_ops._SIZES, "cuda", measure_ops._SIZES["cpu"])
    monkeypatch.setitem(measure_ops._TINY, "cuda", measure_ops._TINY["cpu"])
    monkeypatch.setattr("bench.gpu.timing._CACHE_BYTES", 1000)
    held = []

    def hold(gigabytes):
        held.append(gigabytes)
        return torch.empty(0, dtype=torch.int8)

    monkeypatch.setattr("bench.gpu.measure_steps._hold_all_but", hold)
    small = {
        name: size._replace(hidden_size=40, num_heads=2, batch=4, time=2, probes=4, measured_probes=min(4, some))
        for (name, size), some in zip(sizes.SIZES.items(), (4, 4, 4, 2, 2), strict=True)
    }
    monkeypatch.setitem(sizes.ON, "cuda", small)
    with CudaIsCpu():
        yield held


def test_the_plan_for_a_gpu(pretended):
    records = {}
    for step in all_steps("cuda"):
        if "kernel" in step.name and not zo._C.has_bfloat16():
            continue
        module, function = step.target.split(":")
        result = getattr(importlib.import_module(module), function)(device="cuda", **step.arguments)
        records[step.name] = Record("passed" if step.is_check else "measured", result=result)
        json.dumps(result)
        assert step.is_check or all(figure > 0 for figure in result["figures"].values()), step.name
    for entry in judge(BARS, records, "cuda"):
        assert "measured" in entry or not zo._C.has_bfloat16(), entry
    of_largest = records["measure.step.1.1B.batched"].result
    assert list(of_largest["runs"]) == ["as it comes", "within 39.5 GB"]
    assert of_largest["figures"]["peak GB"] == 0.003
    assert of_largest["runs"]["within 39.5 GB"]["note"] == "forwards scaled from 2 probes to 4; the update is that of 4"
    assert of_largest["short"] == "batched, scaled from 2 probes"
    assert set(pretended) == {None, 0.5, 1.0, 4.0, 25.3, 39.5}


def test_what_does_not_fit(pretended, monkeypatch):
    from bench.gpu import measure_steps

    right = measure_steps._timed
    for error, left in (
        (torch.OutOfMemoryError("CUDA out of memory"), "it does not fit"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED\nand more"), "CUBLAS_STATUS_ALLOC_FAILED"),
    ):

        def limited(*args, error=error):
            if pretended[-1] is not None:
                raise error
            return right(*args)

        monkeypatch.setattr(measure_steps, "_timed", limited)
        result = measure_steps.step("cuda", "1M", "batched")
        assert result["runs"]["within 1.0 GB"] == {"left": left}
        assert result["figures"]["seconds"] == result["runs"]["as it comes"]["seconds"]
    monkeypatch.setattr(measure_steps, "_timed", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError, match=r"^a step does not fit this GPU$"):
        measure_steps.step("cuda", "1M", "batched")


def test_what_is_held(monkeypatch):
    """All of the free memory but what the limit leaves beside what is allocated."""
    from bench.gpu.measure_steps import _hold_all_but

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5_000_000, 9_000_000))
    with CudaIsCpu():
        for allocated, held in ((0, 4_000_000), (400_000, 4_400_000), (1_500_000, 5_000_000)):
            monkeypatch.setattr(torch.cuda, "memory_allocated", lambda allocated=allocated: allocated)
            assert _hold_all_but(0.001).numel() == held
        assert _hold_all_but(None).numel() == 0
        assert _hold_all_but(1.0).numel() == 0
