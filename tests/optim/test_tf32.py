"""TF32 is off while losses are evaluated, and as before afterwards."""

import logging

import pytest
import torch

import zo_kernels as zo
from zo_kernels.backends import tf32

SWITCHES = [(owner, name) for owner, name, _ in tf32._cudnn_settings()]


def values() -> list[object]:
    return [getattr(owner, name) for owner, name in SWITCHES]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has used a GPU."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    tf32._warn_once.cache_clear()


def exact() -> list[object]:
    return [value for _, _, value in tf32._cudnn_settings()]


class Population:
    def __init__(self) -> None:
        self.seen: list[list[object]] = []

    def population_loss(self, seeds: torch.Tensor, eps: float) -> torch.Tensor:
        self.seen.append(values())
        return torch.rand(len(seeds), 2, dtype=torch.float64)


def test_a_step_turns_it_off(cuda: None) -> None:
    before, seen = values(), []
    assert before != exact()
    weight = torch.nn.Parameter(torch.randn(5))

    def closure() -> torch.Tensor:
        seen.append(values())
        return weight.square().sum()

    optimizer, population = zo.optim.CDRGE([weight], lr=0.1, eps=2**-5, probes=2), Population()
    optimizer.step(closure)
    optimizer.step(population)
    assert seen + population.seen == [exact()] * 5
    assert values() == before
    assert torch.backends.cudnn.allow_tf32

    def broken() -> torch.Tensor:
        raise RuntimeError("as it is")

    with pytest.raises(RuntimeError, match="as it is"):
        optimizer.step(broken)
    assert values() == before


def test_nothing_is_touched_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(tf32, "_cudnn_settings", None)
    with tf32.without_tf32():
        pass


def test_that_of_other_products_is_warned_of_once(cuda: None, caplog: pytest.LogCaptureFixture) -> None:
    with tf32.without_tf32():
        pass
    assert not caplog.records
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for _ in range(2):
            with tf32.without_tf32():
                assert torch.get_float32_matmul_precision() == "high"
            tf32.warn_of_tf32()
    finally:
        torch.set_float32_matmul_precision(before)
    assert [(record.name, record.levelno) for record in caplog.records] == [("zo_kernels", logging.WARNING)]
    assert "blurs differences of losses" in caplog.text
    assert "torch.backends.cudnn.allow_tf32 = False" in caplog.text
