"""`--device auto`, on machines with and without a GPU."""

import pytest
import torch

from zo_kernels.train import device as module
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
