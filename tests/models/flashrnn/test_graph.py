"""When a chunk becomes a CUDA graph and when it is replayed; what torch makes of it takes a GPU, not verified here."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models.flashrnn.models import make_flash
from tests.recurrent import SMALL, TOLERANCE, make_batch, make_seeds
from zo_kernels.backends.base import Backend
from zo_kernels.backends.reference import ReferenceBackend
from zo_kernels.models.flashrnn import graph, population
from zo_kernels.models.flashrnn.choice import FlashBackend
from zo_kernels.models.flashrnn.graph import is_small, obstacle, record_or_compute

EPS = 0.1
VANILLA = FlashBackend("vanilla", "")


class DeviceSeeds(ReferenceBackend):
    def apply_probes(self, x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, offset: int) -> None:
        Backend.apply_probes(self, x, out, alpha, seeds, offset)


def test_what_can_not_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(graph, "backend_for", lambda device_type: DeviceSeeds())
    assert obstacle(VANILLA, gpu) is None
    assert obstacle(VANILLA, torch.device("cpu")) == "it needs a CUDA device, not cpu"
    assert obstacle(FlashBackend("cuda", ""), gpu) == (
        "flashrnn's backend cuda waits for the device in every call, which a CUDA graph can't record"
    )
    monkeypatch.setattr(graph, "backend_for", lambda device_type: ReferenceBackend())
    assert obstacle(VANILLA, gpu) == "the ops' backend 'reference' reads seeds on the host"


def test_small_models_are_recorded() -> None:
    assert is_small(1e8, 100)
    assert not is_small(1e10, 100)
    assert not is_small(1e8, 5000)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Tensor]]:
    """Lets chunks be recorded on the CPU; a replay computes on what the tensors then hold, as a CUDA graph's does."""
    recorded: list[Callable[[], Tensor]] = []

    def record(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded.append(compute)
        result = compute()

        def replay() -> Tensor:
            return result.copy_(compute())  # the same memory every time

        return replay

    monkeypatch.setattr(graph, "obstacle", lambda chosen, device: None)
    monkeypatch.setattr(graph, "record", record)
    return recorded


def test_a_recorded_chunk_is_replayed_with_what_is_new(recordings: list[Callable[[], Tensor]]) -> None:
    model, eager = make_flash("lstm"), make_flash("lstm", cuda_graph=False)
    for step in range(3):
        batch, seeds = make_batch(seed=step), make_seeds(5, seed=step)
        eps = EPS / (step + 1)
        losses = model.population_loss(*batch, seeds, eps)
        torch.testing.assert_close(losses, eager.population_loss(*batch, seeds, eps), rtol=0, atol=1e-15)
        for other in (model, eager):
            with torch.no_grad():
                other.recurrent_weight.add_(0.1)  # in place, as an optimizer does
    assert len(recordings) == 1


def test_chunks_of_one_call_share_a_recording(
    recordings: list[Callable[[], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seeds = make_batch(), make_seeds(5)
    expected = make_flash("gru", cuda_graph=False).population_loss(*batch, seeds, EPS)
    monkeypatch.setattr(population.Work, "fits", lambda self, n, t, budget: n <= 2)
    losses = make_flash("gru").population_loss(*batch, seeds, EPS)
    torch.testing.assert_close(losses, expected, rtol=0, atol=TOLERANCE)
    assert len(recordings) == 1


def test_what_makes_another_recording(recordings: list[Callable[[], Tensor]]) -> None:
    model, (tokens, targets), seeds = make_flash("lstm"), make_batch(), make_seeds(4)
    calls = [
        lambda: model.population_loss(tokens, targets, seeds, EPS),
        lambda: model.population_loss(tokens[:2], targets[:2], seeds, EPS),
        lambda: model.population_loss(tokens, targets, seeds[:3], EPS),
        lambda: model.population_loss(tokens, targets, seeds, 2**-3, precision="bfloat16"),
        lambda: model.embedding.requires_grad_(False) is None or model.population_loss(tokens, targets, seeds, EPS),
    ]
    with torch.no_grad():
        model.recurrent_weight.clamp_(-1, 1)
        model.output_weight.clamp_(-1, 1)
    for number, call in enumerate(calls, 1):
        call()
        call()
        assert len(recordings) == number
    assert len(model._engine[1]._recorded) == population._GRAPHS < len(calls)
    model.recurrent_weight.data = model.recurrent_weight.data.clone()
    calls[-1]()
    assert len(recordings) == len(calls) + 1


def test_what_carries_states_or_is_cut_is_not_recorded(
    recordings: list[Callable[[], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seeds = make_batch(), make_seeds(2)
    model = make_flash("lstm")
    model.population_loss(*batch, seeds, EPS, states=model.population_states(2, SMALL.batch))
    monkeypatch.setattr(population.Work, "fits", lambda self, n, t, budget: t <= 2)
    model.population_loss(*batch, seeds, EPS)
    assert not recordings


def test_large_models_are_recorded_only_if_asked(
    recordings: list[Callable[[], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seeds = make_batch(), make_seeds(2)
    monkeypatch.setattr(graph, "_STEP_WORK", 0)
    make_flash("lstm").population_loss(*batch, seeds, EPS)
    assert not recordings
    make_flash("lstm", cuda_graph=True).population_loss(*batch, seeds, EPS)
    assert len(recordings) == 1


def test_a_graph_that_can_not_be_had() -> None:
    batch, seeds = make_batch(), make_seeds(2)
    with pytest.raises(RuntimeError, match="can't record a CUDA graph: it needs a CUDA device, not cpu"):
        make_flash("lstm", cuda_graph=True).population_loss(*batch, seeds, EPS)


def test_a_failed_recording_is_computed_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graph, "record", fail)
    monkeypatch.setattr(graph, "obstacle", lambda chosen, device: None)
    batch, seeds = make_batch(), make_seeds(2)
    model, eager = make_flash("lstm"), make_flash("lstm", cuda_graph=False)
    for _ in range(2):
        assert torch.equal(model.population_loss(*batch, seeds, EPS), eager.population_loss(*batch, seeds, EPS))
    said = [record for record in caplog.records if "no CUDA graph" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    assert said[0].message.endswith("operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="not permitted"):
        make_flash("lstm", cuda_graph=True).population_loss(*batch, seeds, EPS)

    def no_memory(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graph, "record", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        record_or_compute(lambda: torch.zeros(1))


def test_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up on a stream of its own, which waits and is waited for; then one more run inside the graph."""
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            events.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            events.append(f"in {self.name}")

        def __exit__(self, *error: object) -> None:
            events.append(f"out of {self.name}")

    class Graph(Stream):
        def __init__(self) -> None:
            super().__init__("graph")

        def replay(self) -> None:
            events.append("replay")

    for name, value in (
        ("Stream", Stream),
        ("current_stream", lambda: Stream("current")),
        ("stream", lambda stream: stream),
        ("CUDAGraph", Graph),
        ("graph", lambda graph: graph),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    result = torch.zeros(1)
    replay = graph.record(lambda: events.append("compute") or result)
    assert events == [
        "side waits for current",
        *("in side", "compute", "compute", "out of side"),
        "current waits for side",
        *("in graph", "compute", "out of graph"),
    ]
    assert replay() is result
    assert events[-1] == "replay"
