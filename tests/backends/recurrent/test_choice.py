"""Which kernel computes a population in bfloat16: the first that does not refuse, for each backend its own."""

import pytest
import torch

from tests.recurrent import SMALL, make_batch, make_model, make_seeds
from zo_kernels import backend
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.recurrent import choice
from zo_kernels.backends.recurrent.choice import Candidate


class Stub:
    """A kernel that takes up to so many sequences, and notes its calls."""

    def __init__(self, most):
        self.most, self.asked, self.queues = most, [], []

    def refusal(self, weights, batch_size, device):
        self.asked.append((weights.cell, batch_size, device))
        return None if batch_size <= self.most else f"it takes {self.most} sequences, not {batch_size}."

    def recurrent_nats(self, weights, tokens, targets, seeds, eps, states, queue):
        self.queues.append(queue)
        return torch.full((len(seeds), 2), float(self.most), dtype=torch.float64)


@pytest.fixture
def stubs(monkeypatch):
    small, large = Stub(2), Stub(3)
    candidates = Candidate("small", small, ("cuda",)), Candidate("large", large, ("cuda", "triton"))
    monkeypatch.setattr(choice, "_CANDIDATES", candidates)
    return small, large


def test_the_first_that_does_not_refuse(stubs):
    weights = make_model("gru")._weights()
    assert choice.choose("cuda", weights, 2).name == "small"
    assert choice.choose("cuda", weights, 3).name == "large"
    assert choice.choose("triton", weights, 2).name == "large"
    assert stubs[0].asked == [("gru", 2, torch.device("cpu")), ("gru", 3, torch.device("cpu"))]


def test_all_refuse(stubs):
    with pytest.raises(RuntimeError) as refused:
        choice.choose("cuda", make_model("lstm")._weights(), 4)
    assert str(refused.value) == (
        "no kernel of backend 'cuda' computes this model with bfloat16 products (small: it takes 2 sequences, not 4; "
        "large: it takes 3 sequences, not 4): use precision='float32'"
    )


def test_precisions_and_names(stubs, monkeypatch):
    weights = make_model("lstm")._weights()
    for name in ("cuda", "triton"):
        assert BACKENDS[name].precisions() == ("float32", "bfloat16")
        assert BACKENDS[name].recurrent_forward(weights, 99, "float32") == "batched"
        assert BACKENDS[name].recurrent_forward(weights, 3, "bfloat16") == "large"
    monkeypatch.setattr(choice, "_CANDIDATES", (Candidate("small", stubs[0], ("cuda",)),))
    assert BACKENDS["cuda"].precisions() == ("float32", "bfloat16")
    assert BACKENDS["triton"].precisions() == ("float32",)


def test_the_kernels_that_there_are():
    assert [candidate.name for candidate in choice.candidates("cuda")] == ["resident", "streamed"]
    assert [candidate.name for candidate in choice.candidates("triton")] == ["streamed"]
    with pytest.raises(RuntimeError, match=r"\(resident: it computes LSTMs .*; streamed: .*\): use "):
        choice.choose("cuda", make_model("gru", SMALL._replace(layers=2))._weights(), 3)


def test_the_chosen_kernel_computes(stubs, monkeypatch):
    monkeypatch.setattr("zo_kernels.backends.gpu.queue_of", lambda x: (1, 77))
    monkeypatch.setattr(type(BACKENDS["cuda"]), "device_types", ("cpu",))
    monkeypatch.setattr(type(BACKENDS["cuda"]), "unavailable", lambda self: None)
    model, batch = make_model("lstm"), make_batch()
    with backend("cuda"), torch.no_grad():
        for weight in (model.recurrent_weight, model.output_weight):
            weight.clamp_(-1, 1)
        population = model.population(*batch, micro_batch_size=2, precision="bfloat16")
        nats = population.part_nats(0, make_seeds(4), 2**-6)
        whole = model.population(*batch, precision="bfloat16").part_nats(0, make_seeds(4), 2**-6)
        model.population_forward = "kernel"
        assert model.forward_name(SMALL.batch, "bfloat16") == "large"
        with pytest.raises(RuntimeError, match=r"^backend 'cuda' has no kernel for float32 weights with float32 prod"):
            model.population(*batch)
    assert nats.unique().tolist() == [2]
    assert whole.unique().tolist() == [3]
    assert [stub.queues for stub in stubs] == [[(1, 77)], [(1, 77)]]
