"""Buffers after a step: those that forward passes change are put back, and those that can't be are named."""

import copy
from contextlib import suppress

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn

from zo_kernels.optim import CDRGE
from zo_kernels.optim.buffers import BufferKeeper

NAMES = ["a", "b", "c"]


class Scripted(nn.Module):
    """Changes its buffers as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        for name in NAMES:
            self.register_buffer(name, torch.tensor([1.0, float("nan"), -0.0]))
        self.register_buffer("empty", None)
        self.script: list[tuple[str, str]] = []

    def forward(self, x: Tensor) -> Tensor:
        for name, how in self.script:
            self.change(name, how)
        return self.linear(x)

    def change(self, name: str, how: str) -> None:
        if how == "write":
            getattr(self, name).add_(1)
        elif how == "write data":
            getattr(self, name).data.add_(1)
        elif how == "replace":
            setattr(self, name, getattr(self, name) + 1)
        elif how == "remove":
            setattr(self, name, None)
        elif how == "fill":
            self.empty = torch.ones(2)
        else:
            raise KeyError(name)


def bits(x: Tensor | None) -> list[int]:
    return [] if x is None else x.view(torch.int32).tolist()


def scripts(*hows: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(hows)))


@hypothesis.given(
    scripts("write", "write data", "replace", "fill"),
    scripts("write", "replace", "fill"),
    st.sampled_from(["go on", "raise", "remove"]),
)
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_buffers_are_put_back_or_named(
    caplog: pytest.LogCaptureFixture, first: list[tuple[str, str]], later: list[tuple[str, str]], end: str
) -> None:
    """All that the first block changes is put back; what a later one writes for the first time is named, once."""
    caplog.clear()
    model = Scripted()
    keeper = BufferKeeper([model])
    objects = {name: model._buffers[name] for name in [*NAMES, "empty"]}
    before = {name: bits(x) for name, x in objects.items()}
    named: list[str] = []
    for number, script in enumerate((first, later, later)):
        with suppress(KeyError), keeper.kept():
            for name, how in script:
                model.change(name, how)
            if end != "go on":
                model.change("c", end)
        said = [name for name in objects for record in caplog.records if f"buffer {name} " in record.message]
        caplog.clear()
        assert not (said and (number == 0 or end == "raise"))
        named += said
        for name, x in objects.items():
            assert model._buffers[name] is x
            if name in said:
                assert bits(x) != before[name]
                before[name] = bits(x)
            assert bits(x) == before[name]
    assert len(set(named)) == len(named)


def test_a_buffer_that_changes_later_is_named_once_and_then_kept(caplog: pytest.LogCaptureFixture) -> None:
    inner = Scripted()
    model, x = nn.Sequential(inner), torch.ones(3, 2)
    opt = CDRGE(model, lr=0.01, eps=2**-7, probes=2)

    def loss() -> Tensor:
        return model(x).square().mean()

    opt.step(loss)
    inner.script = [("b", "write")]
    opt.step(loss)
    assert inner.b[0] == 5.0  # 4 losses
    for _ in range(2):
        opt.step(loss)
        assert inner.b[0] == 5.0
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("buffer 0.b was written in a step for the first time")
    inner.script = [("b", "write"), ("a", "replace")]
    kept = inner.a
    opt.step(loss)
    assert inner.a is kept
    assert len(caplog.records) == 1


def test_a_first_step_that_fails_early_settles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Scripted(), torch.ones(3, 2)
    opt = CDRGE(model.parameters(), lr=0.01, eps=2**-7, probes=2)
    model.script = [("a", "raise")]
    with pytest.raises(KeyError):
        opt.step(lambda: model(x).mean())
    model.script = [("a", "write")]
    opt.step(lambda: model(x).mean())
    assert model.a[0] == 1.0
    assert not caplog.records


def test_statistics_of_a_model_that_trains_later(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.randn(8, 2)
    opt = CDRGE(model.named_parameters(), lr=0.01, eps=2**-7, probes=2)
    before = copy.deepcopy(dict(model.named_buffers()))
    for training in (False, True, False):
        model.train(training)
        opt.step(lambda: model(x).square().mean())
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name])
    assert not caplog.records


def test_buffers_of_added_groups_are_put_back() -> None:
    first, added, x = nn.Linear(2, 2), nn.BatchNorm1d(2), torch.randn(8, 2)
    opt = CDRGE(first.parameters(), lr=0.01, eps=2**-7, probes=2)
    opt.step(lambda: first(x).square().mean())
    opt.add_param_group({"params": added.parameters()})
    opt.step(lambda: added(first(x)).square().mean())
    assert added.num_batches_tracked == 0
    assert torch.equal(added.running_mean, torch.zeros(2))


def test_only_what_changes_is_copied_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scripted()
    model.register_buffer("large", torch.zeros(1000))
    keeper = BufferKeeper([model])
    copied: list[int] = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda x, **k: (copied.append(x.numel()), clone(x, **k))[1])
    for _ in range(3):
        with keeper.kept():
            model.change("b", "write")
    assert copied == [3, 3, 3, 1000, 3, 3]


def test_modules_that_are_not_known_are_left_alone() -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.randn(8, 2)
    opt = CDRGE(list(model.parameters()), lr=0.01, eps=2**-7, probes=2)
    opt.step(lambda: model(x).square().mean())
    assert model[1].num_batches_tracked == 4
