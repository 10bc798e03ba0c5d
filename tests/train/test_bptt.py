"""The back-propagation baseline: its gradients are those of one big backward, however the batch is cut."""

import math

import pytest
import torch
from torch import Tensor

from zo_kernels.errors import DivergenceError
from zo_kernels.models import LSTM, FlashLM
from zo_kernels.models.build import MODEL_NAMES, build_model, has_memory
from zo_kernels.models.language import LanguageModel
from zo_kernels.train.bptt import BPTT
from zo_kernels.transforms.agreement import agree

NAMES = (*MODEL_NAMES, "flash-lstm")


def small(name: str = "lstm", dtype: torch.dtype = torch.float64) -> LanguageModel:
    if name == "flash-lstm":
        return FlashLM(5, 4, 8, 2, seed=1, dtype=dtype)
    memory = {"memory_slots": 4, "memory_width": 3} if has_memory(name) else {}
    return build_model(name, 5, embed_dim=4, hidden_size=8, num_heads=2, seed=1, **memory).to(dtype)


def batch(rows: int = 6, length: int = 7) -> tuple[Tensor, Tensor]:
    """Rows differ in how many positions they score; the second scores none."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (rows, length), generator=generator)
    targets = torch.randint(5, (rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) < 0.4] = -100
    targets[1] = -100
    return tokens, targets


def gradient_of(model: LanguageModel, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def weights_of(model: LanguageModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def descended(model: LanguageModel, **options: object) -> tuple[float, Tensor]:
    """The loss of one step of SGD with lr 1, and the gradient it went along."""
    before = weights_of(model)
    loss = BPTT(model, lr=1.0, **options).step(*batch())  # type: ignore[arg-type]
    return loss, before - weights_of(model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "cut",
    [{}, {"micro_batch_size": 4}, {"checkpoint_length": 3}, {"micro_batch_size": 2, "checkpoint_length": 1}],
)
def test_gradient_is_that_of_the_whole_batch(name: str, cut: dict[str, int]) -> None:
    model = small(name)
    expected = model.loss(*batch())
    expected_gradient = gradient_of(model, expected)
    loss, gradient = descended(model, **cut)
    assert isinstance(loss, float)
    assert math.isclose(loss, expected.item(), rel_tol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def saved_bytes(**options: int) -> int:
    """Most bytes that the graphs of a step keep for their backward at once."""
    model = LSTM(5, 4, 16, seed=0)
    tokens = torch.randint(5, (4, 64), generator=torch.Generator().manual_seed(0))
    alive: dict[int, int] = {}
    most = 0

    class Kept:
        def __init__(self, x: Tensor) -> None:
            nonlocal most
            self.x = x
            alive[id(self)] = x.numel() * x.element_size()
            most = max(most, sum(alive.values()))

        def __del__(self) -> None:
            alive.pop(id(self))

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
        BPTT(model, lr=0.1, **options).step(tokens, tokens)
    return most


def test_checkpointing_keeps_less() -> None:
    whole = saved_bytes()
    assert saved_bytes(checkpoint_length=8) < 0.5 * whole
    assert saved_bytes(checkpoint_length=64) == whole  # one segment: nothing to gain


@pytest.mark.parametrize(
    ("name", "optimizer", "options"),
    [
        ("sgd", torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}),
        ("adamw", torch.optim.AdamW, {"lr": 0.03, "weight_decay": 0.1}),
    ],
)
def test_steps_are_those_of_torchs_optimizer(
    name: str, optimizer: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    ours, theirs = small(), small()
    bptt, rival = BPTT(ours, name, **options), optimizer(theirs.parameters(), **options)  # type: ignore[arg-type]
    for _ in range(4):
        rival.zero_grad()
        loss = theirs.loss(*batch())
        loss.backward()
        rival.step()
        assert bptt.step(*batch()) == float(loss.detach())
    assert torch.equal(weights_of(ours), weights_of(theirs))


@pytest.mark.parametrize("name", ["lstm", "flash-lstm"])
def test_learns_in_float32(name: str) -> None:
    bptt = BPTT(small(name, torch.float32), "adamw", lr=0.05)
    losses = [bptt.step(*batch()) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_scheduler_and_resumption() -> None:
    def run(model: LanguageModel) -> tuple[BPTT, torch.optim.lr_scheduler.LRScheduler]:
        bptt = BPTT(model, "adamw", lr=0.1)
        return bptt, torch.optim.lr_scheduler.ExponentialLR(bptt.optimizer, 0.5)

    through, halves = small(), small()
    bptt, scheduler = run(through)
    for _ in range(4):
        bptt.step(*batch())
        scheduler.step()
    first, first_scheduler = run(halves)
    for _ in range(2):
        first.step(*batch())
        first_scheduler.step()
    second, second_scheduler = run(halves)
    second.load_state_dict(first.state_dict())
    second_scheduler.load_state_dict(first_scheduler.state_dict())
    for _ in range(2):
        second.step(*batch())
        second_scheduler.step()
    assert second.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4
    assert torch.equal(weights_of(through), weights_of(halves))


@pytest.mark.parametrize("options", [{}, {"checkpoint_length": 2}, {"micro_batch_size": 2, "max_cosine_distance": 2.0}])
def test_divergence_leaves_everything_as_it_was(options: dict[str, float]) -> None:
    model = small()
    bptt = BPTT(model, "adamw", lr=0.1, **options)  # type: ignore[arg-type]
    bptt.step(*batch())
    with torch.no_grad():
        model.output_bias[0] = math.nan
    before, state = weights_of(model), bptt.optimizer.state_dict()["state"][0]["step"].item()
    with pytest.raises(DivergenceError, match="the loss is nan"):
        bptt.step(*batch())
    assert torch.equal(weights_of(model).nan_to_num(7.0), before.nan_to_num(7.0))
    assert bptt.optimizer.state_dict()["state"][0]["step"].item() == state
    assert all(p.grad is None for p in model.parameters())


def test_infinite_gradient_of_a_finite_loss_is_divergence() -> None:
    model = small()
    model.output_bias.register_hook(lambda gradient: gradient * math.inf)
    before = weights_of(model)
    with pytest.raises(DivergenceError, match="its gradient is not finite"):
        BPTT(model, lr=0.1).step(*batch())
    assert torch.equal(weights_of(model), before)


def test_frozen_parameters_stay() -> None:
    model = small()
    model.embedding.requires_grad_(False)
    before = model.embedding.clone()
    BPTT(model, lr=1.0, micro_batch_size=3, max_cosine_distance=2.0).step(*batch())
    assert torch.equal(model.embedding, before)


def test_filter_that_keeps_all_changes_nothing() -> None:
    model = small()
    expected = gradient_of(model, model.loss(*batch()))
    _, gradient = descended(model, micro_batch_size=1, max_cosine_distance=2.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_filter_steps_along_those_that_agree() -> None:
    tokens, targets = batch()
    model = small()
    # One micro-batch at odds with the rest: it asks for the targets that the model finds least likely.
    agreeing = tokens[:1].repeat(3, 1), targets[:1].repeat(3, 1)
    at_odds = targets[:1].clone()
    scored = at_odds != -100
    at_odds[scored] = model(tokens[:1])[0].argmin(-1)[scored]
    gradients = [gradient_of(model, model.loss(tokens[:1], t)) for t in (targets[:1], at_odds)]
    distance = 1 - float(torch.nn.functional.cosine_similarity(*gradients, dim=0))
    bptt = BPTT(model, lr=1.0, micro_batch_size=1, max_cosine_distance=0.9 * distance)
    before = weights_of(model)
    bptt.step(torch.cat((agreeing[0], tokens[:1])), torch.cat((agreeing[1], at_odds)))
    assert bptt.kept == 3
    torch.testing.assert_close(before - weights_of(model), gradients[0])
    before = weights_of(model)
    bptt.step(tokens[:1].repeat(2, 1), torch.cat((at_odds, targets[:1])))  # nobody agrees with the first
    assert bptt.kept == 1
    assert torch.equal(weights_of(model), before)


def test_kept_ones_weigh_what_they_score() -> None:
    tokens, targets = batch()
    targets = targets[:1].repeat(2, 1)
    targets[1, torch.nonzero(targets[1] != -100).flatten()[1:]] = -100  # the second scores one position
    tokens = tokens[:1].repeat(2, 1)
    model = small()
    expected = gradient_of(model, model.loss(tokens, targets))
    before = weights_of(model)
    BPTT(model, lr=1.0, micro_batch_size=1, max_cosine_distance=2.0).step(tokens, targets)
    torch.testing.assert_close(before - weights_of(model), expected, rtol=1e-10, atol=1e-14)


def test_filter_compares_the_gradients_of_mean_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch that scores few positions has as much of a say as the others."""
    given: list[Tensor] = []

    def spy(gradients: Tensor, max_cosine_distance: float) -> tuple[Tensor, Tensor]:
        given.append(gradients)
        return agree(gradients, max_cosine_distance)

    monkeypatch.setattr("zo_kernels.train.bptt.agree", spy)
    model = small()
    tokens, targets = batch()
    scoring = [row for row in range(len(tokens)) if row != 1]
    expected = [gradient_of(model, model.loss(tokens[row : row + 1], targets[row : row + 1])) for row in scoring]
    BPTT(model, lr=1.0, micro_batch_size=1, max_cosine_distance=2.0).step(tokens, targets)
    torch.testing.assert_close(given, [torch.stack(expected)], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam': choose one of sgd, adamw"),
        ({"lr": 0.0}, "lr must be positive and finite"),
        ({"lr": math.nan}, "lr must be positive and finite"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and at least 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"optimizer": "adamw", "momentum": 0.5}, "momentum is sgd's"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"checkpoint_length": 0}, "checkpoint_length must be at least 1"),
        ({"max_cosine_distance": 2.5}, r"max_cosine_distance must be in \[0, 2\]"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BPTT(small(), **{"lr": 0.1, **options})  # type: ignore[arg-type]


def test_batches_that_cannot_be_stepped_on_are_refused() -> None:
    model = small()
    tokens, targets = batch()
    before = weights_of(model)
    with pytest.raises(ValueError, match="no position of the batch is scored"):
        BPTT(model, lr=0.1).step(tokens, torch.full_like(targets, -100))
    with pytest.raises(ValueError, match="there is one only: lower micro_batch_size"):
        BPTT(model, lr=0.1, max_cosine_distance=1.0).step(tokens, targets)
    with pytest.raises(ValueError, match="token"):
        BPTT(model, lr=0.1).step(tokens + 5, targets)
    assert torch.equal(weights_of(model), before)


def test_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        BPTT(small().requires_grad_(False), lr=0.1)


def test_state_of_another_optimizer_is_refused() -> None:
    bptt = BPTT(small(), "adamw", lr=0.1)
    with pytest.raises(ValueError, match="of BPTT with sgd, but BPTT with adamw is to continue"):
        bptt.load_state_dict(BPTT(small(), lr=0.5).state_dict())
    with pytest.raises(ValueError, match="of no BPTT"):
        bptt.load_state_dict({"zo_kernels": {}})
    assert bptt.optimizer.param_groups[0]["lr"] == 0.1
