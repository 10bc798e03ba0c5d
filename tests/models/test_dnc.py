"""The two DNCs against their equations, written out a step at a time for one sequence."""

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from tests.memory_models import BATCH, SIZES, TIME, make_memory_model, make_tokens
from tests.models import dnc_equations as equations
from zo_kernels.models import DNC, PaperDNC

Row = list[float]


def dnc_logits(model: DNC, tokens: list[int]) -> list[Row]:
    """Logits after each token, by the paper's equations."""
    p = {name: parameter.tolist() for name, parameter in model.named_parameters()}
    slots, width, heads = range(model.memory_slots), model.memory_width, range(model.num_heads)
    h, c = [0.0] * model.hidden_size, [0.0] * model.hidden_size
    memory = [[0.0] * width for _ in slots]
    usage, precedence, written = ([0.0 for _ in slots] for _ in range(3))
    link = [[0.0 for _ in slots] for _ in slots]
    reads, vectors = [[0.0 for _ in slots] for _ in heads], [[0.0] * width for _ in heads]
    logits = []
    for token in tokens:
        inputs = [*p["embedding"][token], *chain(*vectors), *h]
        h, c = equations.lstm(equations.affine(p["controller_weight"], inputs, p["controller_bias"]), c)
        xi = iter(equations.affine(p["interface_weight"], h, p["interface_bias"]))

        def take(count: int, xi=xi) -> Row:
            return [next(xi) for _ in range(count)]

        read_keys = [take(width) for _ in heads]
        read_strengths = [equations.oneplus(x) for x in take(len(heads))]
        write_key, write_strength = take(width), equations.oneplus(take(1)[0])
        erase, write = [equations.sigmoid(x) for x in take(width)], take(width)
        free_gates = [equations.sigmoid(x) for x in take(len(heads))]
        allocation_gate, write_gate = equations.sigmoid(take(1)[0]), equations.sigmoid(take(1)[0])
        modes = [equations.softmax(take(3)) for _ in heads]
        assert next(xi, None) is None

        usage = equations.usage(usage, written, reads, free_gates)
        by_content = equations.content(memory, write_key, write_strength)
        written = equations.write_weights(by_content, equations.allocation(usage), write_gate, allocation_gate)
        memory = equations.memory(memory, written, erase, write)
        link = equations.link(link, precedence, written)
        precedence = equations.precedence(precedence, written)
        reads = [
            equations.read_weights(link, reads[i], equations.content(memory, read_keys[i], read_strengths[i]), modes[i])
            for i in heads
        ]
        vectors = [equations.read(memory, read) for read in reads]
        logits.append(equations.affine(p["output_weight"], [*h, *chain(*vectors)], p["output_bias"]))
    return logits


def paper_logits(model: PaperDNC, tokens: list[int]) -> list[Row]:
    """Logits after each token, with torch's own modules: LSTMCell and LayerNorm."""
    p = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = p[f"{name}_norm_weight"], p[f"{name}_norm_bias"]
        return nn.functional.layer_norm(x, weight.shape, weight, bias)

    hidden, width, heads = model.hidden_size, model.memory_width, model.num_heads
    inputs = p["controller_weight"].shape[1] - hidden
    cell = nn.LSTMCell(inputs, hidden, dtype=torch.float64)
    cell.load_state_dict(
        {
            "weight_ih": p["controller_weight"][:, :inputs],
            "weight_hh": p["controller_weight"][:, inputs:],
            "bias_ih": p["input_bias"],
            "bias_hh": p["recurrent_bias"],
        }
    )
    h = c = torch.zeros(hidden, dtype=torch.float64)
    memory, vectors = model.initial_states(1)[2][0], torch.zeros(heads * width, dtype=torch.float64)
    logits = []
    for token in tokens:
        h, c = cell(norm("input", torch.cat((p["embedding"][token], vectors))), (h, c))
        u = norm("hidden", h)
        interface = p["interface_weight"] @ u + p["interface_bias"]
        read_keys, write_key, strength, erase, write = interface.split([heads * width, width, 1, width, width])
        scores = norm("memory", memory) @ norm("write_key", write_key)
        written = strength.sigmoid() * scores.softmax(0)
        memory = memory * (1 - torch.outer(written, erase.sigmoid())) + torch.outer(written, write.tanh())
        vectors = torch.cat(
            [
                (norm("memory", memory) @ norm("read_key", key)).softmax(0) @ memory
                for key in read_keys.view(heads, width)
            ]
        )
        logits.append((p["output_weight"] @ norm("output", torch.cat((u, vectors))) + p["output_bias"]).tolist())
    return logits


@pytest.mark.parametrize("name", ["dnc", "paper-dnc"])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_equals_its_equations(name: str, num_heads: int) -> None:
    model = make_memory_model(name, torch.float64, num_heads=num_heads)
    tokens = make_tokens()
    written_out = dnc_logits if isinstance(model, DNC) else paper_logits
    expected = torch.tensor([written_out(model, row) for row in tokens.tolist()], dtype=torch.float64)
    with torch.no_grad():
        actual, _ = model(tokens)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    assert expected.shape == (BATCH, TIME, SIZES["vocab_size"])


@pytest.mark.parametrize("name", ["dnc", "paper-dnc"])
def test_memory_rows_come_to_differ(name: str) -> None:
    model = make_memory_model(name)
    with torch.no_grad():
        _, states = model(make_tokens())
    memory = dict(zip(model.state_names, states, strict=True))["memory"]
    distances = torch.cdist(memory, memory) + 9 * torch.eye(model.memory_slots)
    assert distances.min() > 1e-3


def test_a_paper_dnc_that_starts_from_zeros_has_one_row() -> None:
    """The fault that its initial memory is there to mend."""
    model = make_memory_model("paper-dnc")
    h, c, memory, vectors = model.initial_states(BATCH)
    with torch.no_grad():
        _, states = model(make_tokens(), (h, c, torch.zeros_like(memory), vectors))
    torch.testing.assert_close(states[2], states[2][:, :1].expand_as(memory), rtol=0, atol=1e-6)


def test_initial_memory_is_a_function_of_slot_and_column() -> None:
    small, large = PaperDNC(9, 4, 4, 3, 6, seed=0), PaperDNC(9, 4, 4, 50, 6, seed=1)
    memory = small.initial_states(2)[2]
    assert torch.equal(memory[0], memory[1])
    assert torch.equal(memory[0], large.initial_states(1)[2][0, :3])
    angle = torch.tensor([2 / 10000 ** (2 * k / 6) for k in range(3)])
    torch.testing.assert_close(memory[0, 2], 0.1 * torch.stack((angle.sin(), angle.cos()), dim=1).flatten())
    assert torch.pdist(large.initial_states(1)[2][0]).min() > 1e-3
