"""ActivityPerturbation: steps of any optimizer of torch along estimates from perturbed activities."""

import copy
import math

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from zo_kernels.errors import DivergenceError
from zo_kernels.models import LSTM
from zo_kernels.optim.parts import mean_gradient

BATCH = torch.randint(7, (2, 6, 5), generator=torch.Generator().manual_seed(0)).unbind()


def model_of(dtype: torch.dtype = torch.float64) -> LSTM:
    return LSTM(7, 4, 8, 2, seed=1, dtype=dtype)


def optimizer_of(model: LSTM, **options: object) -> zo.optim.ActivityPerturbation:
    return zo.optim.ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=0.05), **options)


def weights_of(model: LSTM) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"local_gradient": True}, {"credit_length": 2}, {"micro_batch_size": 4}])
def test_learns(dtype: torch.dtype, options: dict[str, int]) -> None:
    model = model_of(dtype)
    opt = optimizer_of(model, probes=8)
    losses = [opt.step(model.activity(*BATCH, **options)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] == pytest.approx(float(model_of(dtype).loss(*BATCH).detach()), rel=2e-2)
    assert all(p.grad is None for p in model.parameters())


def test_a_step_is_that_of_torchs_optimizer_along_the_estimate() -> None:
    model, other = model_of(), model_of()
    opt = zo.optim.ActivityPerturbation(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), probes=3, seed=5)
    rival = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.9)
    for step in range(3):
        opt.step(model.activity(*BATCH))
        seeds = torch.from_numpy(zo.philox.probe_seeds(5, step, 3))
        found = zo.ops.recurrent_activity(other._weights(perturbed=False), *BATCH, seeds, 2**-7)
        for p, gradient in zip(other.parameters(), found.gradients, strict=True):
            p.grad = gradient / BATCH[1].numel()
        rival.step()
    assert torch.equal(weights_of(model), weights_of(other))


def test_micro_batches_and_states_do_not_show() -> None:
    model = model_of()
    states = model.next_logits(BATCH[0])[1]
    seeds = torch.tensor([1, 2])
    whole, parts = (model.activity(*BATCH, states=states, micro_batch_size=size) for size in (None, 4))
    (loss, gradients), (loss_of_parts, sums) = (mean_gradient(batch, seeds, 0.01) for batch in (whole, parts))
    assert (whole.parts, parts.parts) == (1, 2)
    assert loss == pytest.approx(loss_of_parts)
    for gradient, sum_ in zip(gradients, sums, strict=True):
        torch.testing.assert_close(gradient, sum_, rtol=1e-10, atol=1e-14)
    assert loss != pytest.approx(mean_gradient(model.activity(*BATCH), seeds, 0.01)[0])


def test_a_gradient_that_is_too_large_to_add_up_is_divergence() -> None:
    class Loss:
        parts, scored, parameters = 2, 1, [torch.nn.Parameter(torch.zeros(3))]

        def part_gradient(self, part: int, seeds: Tensor, eps: float) -> tuple[float, list[Tensor]]:
            return 1.0, [torch.tensor([0.0, 2.0**45 * (1 + part), 0.0])]

    with pytest.raises(DivergenceError, match="its gradient is not finite"):
        mean_gradient(Loss(), torch.tensor([1]), 0.1)


def test_frozen_parameters_stay() -> None:
    model = model_of()
    model.recurrent_weight.requires_grad_(False)
    before = model.recurrent_weight.clone(), model.embedding.clone()
    optimizer_of(model).step(model.activity(*BATCH))
    assert torch.equal(model.recurrent_weight, before[0])
    assert not torch.equal(model.embedding, before[1])


def test_resumption_and_scheduler() -> None:
    through, halves = model_of(), model_of()
    opt = optimizer_of(through)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt.optimizer, 0.5)
    first = optimizer_of(halves)
    first_scheduler = torch.optim.lr_scheduler.ExponentialLR(first.optimizer, 0.5)
    for _ in range(4):
        opt.step(through.activity(*BATCH))
        scheduler.step()
    for _ in range(2):
        first.step(halves.activity(*BATCH))
        first_scheduler.step()
    second = optimizer_of(halves)
    second_scheduler = torch.optim.lr_scheduler.ExponentialLR(second.optimizer, 0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second_scheduler.load_state_dict(first_scheduler.state_dict())
    assert second.steps_taken == 2
    for _ in range(2):
        second.step(halves.activity(*BATCH))
        second_scheduler.step()
    assert torch.equal(weights_of(through), weights_of(halves))


def test_divergence_leaves_everything_as_it_was() -> None:
    model = model_of()
    opt = optimizer_of(model)
    with torch.no_grad():
        model.output_bias[0] = math.nan
    before = weights_of(model)
    with pytest.raises(DivergenceError, match="the loss is nan"):
        opt.step(model.activity(*BATCH))
    assert torch.equal(weights_of(model).nan_to_num(7.0), before.nan_to_num(7.0))
    assert opt.steps_taken == 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "probes must be a positive integer, not 0"),
        ({"eps": 0.0}, "eps must be positive and finite, not 0.0"),
        ({"eps": math.inf}, "eps must be positive and finite, not inf"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\^64\), not -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer_of(model_of(), **options)


def test_batches_that_cannot_be_stepped_on_are_refused() -> None:
    model = model_of()
    tokens, targets = BATCH
    for options, message in (
        ({"credit_length": 0}, "credit_length must be a positive integer, not 0"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a positive integer, not 0"),
        ({"targets_BT": torch.full_like(targets, -100)}, "there is nothing to learn from this batch"),
        ({"tokens_BT": tokens + 7}, r"tokens must lie in \[0, 7\)"),
        ({"states": model.initial_states(2)}, "state h must be of 6 sequences"),
    ):
        with pytest.raises(ValueError, match=message):
            model.activity(**{"tokens_BT": tokens, "targets_BT": targets, **options})
    for options in ({"num_layers": 2}, {"layer_norm": True}):
        with pytest.raises(ValueError, match="for a single layer without layer norm"):
            LSTM(7, 4, 8, 2, **options).activity(*BATCH)


def test_state_of_something_else_is_refused() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="this state is not of ActivityPerturbation"):
        optimizer_of(model).load_state_dict({"bptt": "sgd"})
