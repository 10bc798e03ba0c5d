"""`--device auto`, on machines with and without a GPU, and a checkout that was not built."""

from pathlib import Path

import pytest
import torch

import zo_kernels
from tests.train.runs import SMALL
from zo_kernels import backends
from zo_kernels.backends import cpu
from zo_kernels.train import device as module
from zo_kernels.train import run
from zo_kernels.train.__main__ import main
from zo_kernels.train.defaults import default_config
from zo_kernels.train.device import choose_device


class StandIn:
    """What a backend says of itself."""

    def __init__(self, name: str, precisions: tuple[str, ...] = ("float32", "bfloat16")) -> None:
        self.name = name
        self.precisions = lambda: precisions


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU, on which backend cuda works."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(module, "backend_for", lambda device: StandIn("cuda"))


def test_what_is_asked_for_is_taken(gpu: None) -> None:
    assert choose_device(default_config(device="cpu")) == ("cpu", "")
    assert choose_device(default_config(device="cuda")) == ("cuda", "")


def test_a_gpu_that_works_is_taken(gpu: None) -> None:
    assert default_config().device == "auto"
    assert choose_device(default_config()) == ("cuda", "NVIDIA H200 found")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, reason in ((None, "torch has no CUDA"), ("12.8", "no CUDA device")):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert choose_device(default_config()) == ("cpu", reason)


@pytest.mark.parametrize(("gpus", "device"), [(1, "cpu"), (3, "cpu"), (4, "cuda"), (8, "cuda")])
def test_each_process_of_a_launch_needs_a_gpu(
    gpus: int, device: str, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    chosen, reason = choose_device(default_config())
    assert chosen == device
    if device == "cpu":
        assert reason == f"{gpus} GPU{'s' if gpus > 1 else ''} for 4 processes"


def test_no_backend_works_there(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: str) -> None:
        raise RuntimeError("no backend computes on cuda tensors")

    monkeypatch.setattr(module, "backend_for", none)
    assert choose_device(default_config()) == ("cpu", "no CUDA backend")
    monkeypatch.setattr(module, "backend_for", lambda device: StandIn("reference"))
    assert choose_device(default_config()) == ("cpu", "no CUDA backend")


def test_what_the_backend_can_t_do_is_done_on_the_cpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "backend_for", lambda device: StandIn("cuda", ("float32",)))
    config = default_config(precision="bfloat16", eps=2.0**-5)
    assert choose_device(config) == ("cpu", "no bfloat16 products on cuda")


def test_a_backend_that_is_asked_for(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the stand-in for `backend_for`: backend cpu knows no cuda tensors, backend reference all."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert choose_device(default_config(backend="cpu")) == ("cpu", "backend cpu is not for cuda")
    assert choose_device(default_config(backend="reference")) == ("cuda", "NVIDIA H200 found")


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout that was not built, in a process in which nothing was computed yet."""
    monkeypatch.setattr(cpu, "_C", None)
    monkeypatch.setattr(cpu, "_import_error", "no _C.so", raising=False)
    monkeypatch.setattr(backends, "_automatic", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_an_unbuilt_checkout_does_not_train(
    unbuilt: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: build first: pip install -e . (the package in ")
    assert (printed.err.count("\n"), caplog.text) == (1, "")
    assert not (tmp_path / "run").exists()


def test_an_unbuilt_checkout_trains_on_the_reference(unbuilt: None, tmp_path: Path) -> None:
    few = [*SMALL, "--steps", "1", "--probes", "2"]
    assert main([*few, "--backend", "reference", "--out", str(tmp_path / "run")]) == 0
    zo_kernels.set_backend("reference")
    assert run(default_config("copy", steps=1, probes=2, out=tmp_path / "other"), quiet=True).failure is None
