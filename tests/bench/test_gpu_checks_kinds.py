"""The checks of the training system on a device, on the CPU: they pass, and they find what is planted."""

import pytest
import torch

from bench.gpu import check_kinds
from bench.gpu.plan import all_steps
from zo_kernels.backends import BACKENDS
from zo_kernels.models import DNC
from zo_kernels.optim import ZeroOrder


def test_distributions(monkeypatch):
    assert check_kinds.distributions("cpu") == {"distributions": 4}
    right, calls = BACKENDS["cpu"].apply_probe, []

    def off_once(x, out, *args):
        right(x, out, *args)
        calls.append(args[-1])
        if calls.count("normal") == 1:
            out.flatten()[77] = 0.5

    monkeypatch.setattr(BACKENDS["cpu"], "apply_probe", off_once)
    with pytest.raises(AssertionError, match=r"normal, result"):
        check_kinds.distributions("cpu")


def test_replays(monkeypatch):
    assert check_kinds.replays("cpu")["Adam apart, at most"] == 0.0
    right, calls = ZeroOrder.replay, []

    def off_once(self, coeffs):
        calls.append(1)
        right(self, coeffs.flip(0) if len(calls) == 3 else coeffs)

    monkeypatch.setattr(ZeroOrder, "replay", off_once)
    with pytest.raises(AssertionError, match="rademacher, replayed"):
        check_kinds.replays("cpu")
    monkeypatch.setattr(check_kinds, "_DISTRIBUTIONS", ())  # so that the third call is one of Adam's
    calls.clear()
    with pytest.raises(AssertionError, match="Adam's parameters are apart"):
        check_kinds.replays("cpu")


@pytest.mark.parametrize("name", ["dnc", "paper-dnc"])
def test_memory(name, monkeypatch):
    assert check_kinds.memory("cpu", name)["nats apart, at most"] == 0.0
    build, calls = check_kinds._model, []

    def other_once(*args):
        model = build(*args)
        calls.append(1)
        if len(calls) == 2:
            with torch.no_grad():
                model.output_weight *= 1.1
        return model

    monkeypatch.setattr(check_kinds, "_model", other_once)
    with pytest.raises(AssertionError, match=rf"{name}: losses are apart"):
        check_kinds.memory("cpu", name)


def test_bptt(monkeypatch):
    assert check_kinds.bptt("cpu")["models"] == 6
    right, calls = DNC.loss, []

    def off_once(self, *args):
        calls.append(1)
        return right(self, *args) * (1.01 if len(calls) == 1 else 1.0)

    monkeypatch.setattr(DNC, "loss", off_once)
    with pytest.raises(AssertionError, match=r"dnc, .*: the gradient is off by"):
        check_kinds.bptt("cpu")


def test_the_plan_has_them():
    for device in ("cpu", "cuda"):
        names = {step.name for step in all_steps(device)}
        assert {"check.distributions", "check.replays", "check.memory.dnc", "check.memory.paper-dnc"} <= names
        assert "check.bptt" in names
