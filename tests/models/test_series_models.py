"""Models that read numbers: against torch's layers, and their populations against displaced models."""

import pytest
import torch
from torch.nn import functional as F

from zo_kernels.models import SERIES_MODELS, SeriesModel, build_model
from zo_kernels.ops import apply_probe
from zo_kernels.params.space import flat_offsets

LAYERS = {"num_layers": 2, "layer_norm": True, "residual": True}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x_BTK, y_BT = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    y_BT[0, 2:] = -100
    return x_BTK, y_BT


def test_an_lstm_is_that_of_torch() -> None:
    model, (x_BTK, y_BT) = SERIES_MODELS["lstm"](3, 5, 8, seed=0, dtype=torch.float64), batch()
    layer = torch.nn.LSTM(5, 8, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(model.input_weight.flatten(0, 2))
        layer.weight_hh_l0.copy_(model.recurrent_weight.flatten(0, 2))
        layer.bias_ih_l0.copy_(model.bias.flatten())
        layer.bias_hh_l0.zero_()
        expected_BT = F.linear(layer(x_BTK @ model.embedding)[0], model.output_weight, model.output_bias)[..., 0]
        predicted_BT1, _ = model(x_BTK)
    torch.testing.assert_close(predicted_BT1[..., 0], expected_BT)
    is_scored = y_BT != -100
    torch.testing.assert_close(model.loss(x_BTK, y_BT).detach(), F.mse_loss(expected_BT[is_scored], y_BT[is_scored]))
    squares, correct = model.score(x_BTK, y_BT)
    assert squares == pytest.approx(model.loss(x_BTK, y_BT).item() * int(is_scored.sum()))
    assert correct == 0


@pytest.mark.parametrize("layers", [{}, LAYERS], ids=["one", "two"])
@pytest.mark.parametrize("cell", SERIES_MODELS)
def test_its_population_is_that_of_displaced_models(cell: str, layers: dict[str, int]) -> None:
    model, (x_BTK, y_BT) = SERIES_MODELS[cell](3, 4, 8, 2, seed=0, dtype=torch.float64, **layers), batch()
    seeds = torch.tensor([3, -7])
    losses = model.population(x_BTK, y_BT).population_loss(seeds, 0.02)
    cut = model.population(x_BTK, y_BT, micro_batch_size=3, segment_length=4).population_loss(seeds, 0.02)
    torch.testing.assert_close(cut, losses)
    offsets, theta = flat_offsets(model), {p: p.detach().clone() for p in model.parameters()}
    for probe, seed in enumerate(seeds.tolist()):
        for side, eps in enumerate((0.02, -0.02)):
            for p, x in theta.items():
                p.data = apply_probe(x, eps, seed, offset=offsets[p])
            assert float(losses[probe, side]) == pytest.approx(model.loss(x_BTK, y_BT).item(), rel=1e-12)


def test_segments_are_the_whole() -> None:
    model, (x_BTK, y_BT) = SERIES_MODELS["gru"](3, 4, 8, seed=0, dtype=torch.float64), batch()
    total, states = torch.zeros(()), None
    for x, y in zip(x_BTK.split(4, 1), y_BT.split(4, 1), strict=True):
        part, states = model.segment_nats(x, y, states)
        total = total + part
    torch.testing.assert_close(total, model.segment_nats(x_BTK, y_BT)[0])
    _, after = model.next_logits(x_BTK[:, :4])
    last_B1, _ = model.next_logits(x_BTK[:, 4:], after)
    torch.testing.assert_close(last_B1, model(x_BTK)[0][:, -1])


def test_what_is_refused() -> None:
    model, (x_BTK, y_BT) = SERIES_MODELS["lstm"](3, 4, 8, seed=0), batch()
    assert isinstance(build_model("gru", 4, embed_dim=2, hidden_size=4, num_heads=1, reads_numbers=True), SeriesModel)
    for x, y, sentence in (
        (x_BTK[..., :2], y_BT, r"inputs must be numbers \[B, T, 3\]"),
        (x_BTK.long(), y_BT, r"inputs must be numbers \[B, T, 3\]"),
        (x_BTK[:, :0], y_BT[:, :0], "inputs must not be empty"),
        (x_BTK, y_BT.long(), r"targets must be numbers of shape \[4, 6\]"),
        (x_BTK, y_BT[:, 1:], r"targets must be numbers of shape \[4, 6\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.loss(x.to(torch.float32) if x.is_floating_point() else x, y)
    with pytest.raises(ValueError, match="no bfloat16 products"):
        model.population_nats(x_BTK.float(), y_BT.float(), torch.tensor([1]), 0.1, precision="bfloat16")
    with pytest.raises(ValueError, match="a series of numbers is for the models lstm, gru, elman, not dnc"):
        build_model("dnc", 4, embed_dim=2, hidden_size=4, num_heads=1, reads_numbers=True)
