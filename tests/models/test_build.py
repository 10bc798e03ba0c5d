"""build_model: every model by its name, and what it says of arguments that don't fit; presets and their sizes."""

import pytest
import torch

from zo_kernels.models import (
    DNC,
    GRU,
    LSTM,
    MODEL_NAMES,
    MODELS,
    PRESETS,
    Elman,
    FlashLM,
    PaperDNC,
    Preset,
    build_model,
    has_memory,
)

SIZES = {"embed_dim": 4, "hidden_size": 8, "num_heads": 2}
MEMORY = {"memory_slots": 5, "memory_width": 3}
TYPES = {"lstm": LSTM, "gru": GRU, "elman": Elman, "slstm": FlashLM, "dnc": DNC, "paper-dnc": PaperDNC}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_by_its_name(name: str) -> None:
    model = build_model(name, 9, **SIZES, **(MEMORY if has_memory(name) else {}), seed=0)
    assert type(model) is TYPES[name]
    assert model.name == name
    assert model.precisions == (("float32",) if has_memory(name) else ("float32", "bfloat16"))
    assert model.output_weight.dtype == torch.float32
    tokens = torch.randint(9, (2, 3), generator=torch.Generator().manual_seed(0))
    logits, states = model(tokens)
    assert logits.shape == (2, 3, 9)
    assert len(states) == len(model.state_names) == len(model.initial_states(2)) == len(set(model.state_names))
    losses = model.population(tokens, tokens).population_loss(torch.arange(2), 0.0)
    torch.testing.assert_close(losses, model.loss(tokens, tokens).detach().expand(2, 2), rtol=0, atol=1e-5)


def test_state_names() -> None:
    assert {name: build_model(name, 9, **SIZES).state_names for name in MODEL_NAMES if not has_memory(name)} == {
        "lstm": ("h", "c"),
        "gru": ("h",),
        "elman": ("h",),
        "slstm": ("h", "c", "n", "m"),
    }


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("s4", {}, "unknown model 's4': choose one of lstm, gru, elman, slstm, dnc, paper-dnc"),
        ("lstm", {"memory_slots": 0}, "the model lstm has no memory: leave memory_slots out"),
        ("slstm", {"memory_width": 4}, "the model slstm has no memory: leave memory_width out"),
        ("dnc", {"memory_slots": 4}, "the model dnc has a memory: give memory_width too"),
        ("paper-dnc", {}, "the model paper-dnc has a memory: give memory_slots too"),
        ("dnc", MEMORY | {"memory_slots": 0}, "memory_slots must be a positive integer, not 0"),
        ("dnc", MEMORY | {"num_heads": -1}, "num_heads must be a positive integer, not -1"),
        ("paper-dnc", MEMORY | {"memory_width": 2.0}, "memory_width must be a positive integer, not 2.0"),
        ("paper-dnc", MEMORY | {"memory_width": 1}, "memory_width must be at least 2: a slot is normalised over its"),
        ("lstm", {"num_layers": 0}, "num_layers must be a positive integer, not 0"),
        ("gru", {"residual": True}, "residual connections need num_layers of 2 or more"),
        ("paper-dnc", MEMORY | {"num_layers": 2}, "the model paper-dnc has a single layer: leave num_layers out"),
        (
            "dnc",
            MEMORY | {"flashrnn": True},
            "FlashRNN computes the models lstm, gru, elman, slstm on te",
        ),
        ("lstm", {"flashrnn": True, "reads_numbers": True}, "not lstm on this task"),
        ("slstm", {"num_layers": 2, "memory_slots": 3}, "the model slstm has no memory: leave memory_slots out"),
        ("dnc", MEMORY | {"layer_norm": True}, "the model dnc has a single layer: leave layer_norm out"),
        ("slstm", {"num_heads": 3}, "hidden_size 8 is not divisible by num_heads 3"),
    ],
)
def test_refusals(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        build_model(name, 9, **(SIZES | changes))
    assert "\n" not in str(info.value)


def lstm_size(vocab: int, embed: int, hidden: int, heads: int) -> int:
    """Embedding, input projection, recurrence, biases, output projection; and the paper's initial h and c."""
    recurrence = 4 * heads * (hidden // heads) ** 2
    return vocab * embed + 4 * hidden * embed + recurrence + 4 * hidden + (hidden + 1) * vocab + 2 * hidden


def paper_dnc_size(vocab: int, embed: int, hidden: int, heads: int, width: int) -> int:
    """As the published code's modules have them: an embedding, an LSTM, five linear layers, six norms, a projection."""
    reads = heads * width
    inputs, outputs = embed + reads, hidden + reads
    lstm = 4 * hidden * (inputs + hidden) + 8 * hidden
    linear = (hidden + 1) * (reads + width + 1 + width + width)
    norms = 2 * (inputs + hidden + 3 * width + outputs)
    return vocab * embed + lstm + linear + norms + (outputs + 1) * vocab


def dnc_size(vocab: int, embed: int, hidden: int, heads: int, width: int) -> int:
    reads = heads * width
    lstm = 4 * hidden * (embed + reads + hidden + 1)
    interface = (hidden + 1) * (reads + 3 * width + 5 * heads + 3)
    return vocab * embed + lstm + interface + (hidden + reads + 1) * vocab


@pytest.mark.parametrize("name", MODELS)
def test_layers(name: str) -> None:
    model = build_model(name, 9, **SIZES, num_layers=3, layer_norm=True, residual=True, seed=0)
    assert (model.num_layers, model.layer_norm, model.residual) == (3, True, True)
    assert model.initial_states(5)[0].shape == (3 * 2, 5, 4)
    one = build_model(name, 9, **SIZES, seed=0)
    for parameter, same in zip(one.parameters(), model.parameters(), strict=False):
        assert torch.equal(parameter, same)  # the first layer starts as if it were alone
    assert model.upper_input_weight.abs().max() <= 8**-0.5 < 2 * model.upper_input_weight.abs().max()
    assert model.upper_recurrent_weight.abs().max() <= 4**-0.5 < 2 * model.upper_recurrent_weight.abs().max()
    assert torch.equal(model.upper_bias[1], model.bias)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("paper", "dnc"))])
def test_presets_have_the_papers_sizes(name: str) -> None:
    preset = PRESETS[name]
    sizes = {field: getattr(preset, field) for field in Preset._fields if field not in ("model", "parameters")}
    model = build_model(preset.model, 100, **sizes, device="meta")
    trainable = sum(parameter.numel() for parameter in model.parameters())
    layer = 100, preset.embed_dim, preset.hidden_size, preset.num_heads
    if preset.model == "lstm":
        assert preset.parameters == lstm_size(*layer) == trainable + 2 * preset.hidden_size
        return
    assert preset.memory_width is not None
    formula = dnc_size if preset.model == "dnc" else paper_dnc_size
    assert preset.parameters == formula(*layer, preset.memory_width) == trainable


def test_presets_are_named_by_their_size() -> None:
    """To the two digits that the paper gives at least: 0.15M is its 100k, and its 4.51B the 4.5b."""
    units = {"k": 1e3, "m": 1e6, "b": 1e9}
    for name, preset in PRESETS.items():
        if name == "char-rnn":
            assert preset.parameters == lstm_size(100, 128, 128, 1) - 2 * 128 + lstm_size(0, 128, 128, 1) - 2 * 128
            continue
        assert name.startswith(preset.model if preset.model != "lstm" else "paper-lstm")
        size = name.rsplit("-", 1)[1]
        assert 0.94 < preset.parameters / (float(size[:-1]) * units[size[-1]]) < 1.51
    assert PRESETS["paper-dnc-300k"].parameters == 287_165
    assert PRESETS["paper-lstm-100k"].parameters == 150_740
