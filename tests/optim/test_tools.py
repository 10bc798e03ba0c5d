"""The optimizer among torch's tools: copies, checkpoints, schedules, frozen parameters, autocast, torch.compile."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import zo_kernels as zo
from tests.optim.small import built, closure_of, small_model
from zo_kernels.optim import CDRGE

KINDS: dict[str, dict[str, Any]] = {
    "in place": {},
    "shadow": {"mode": "shadow"},
    "adam": {"dense": "adam"},
    "window": {"transforms": "momentum:0.9:3"},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@each_kind
def test_building_an_optimizer_moves_nothing(kind: str) -> None:
    model = small_model()
    addresses = [p.data_ptr() for p in model.parameters()]
    opt = zo.optim.ZeroOrder(model, lr=2**-6, **KINDS[kind])
    assert [p.data_ptr() for p in model.parameters()] == addresses
    opt.step(closure_of(model))
    assert [p.data_ptr() for p in model.parameters()] == addresses


@each_kind
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(kind: str, how: Callable[[Any], Any]) -> None:
    model, opt = built(**KINDS[kind])
    opt.step(closure_of(model))
    other, again = how((model, opt))
    for _ in range(2):
        assert opt.step(closure_of(model)) == again.step(closure_of(other))
    assert_same(model, other)
    assert not set(map(id, opt.space.parameters)) & set(map(id, again.space.parameters))


@each_kind
def test_state_by_parameter_survives_a_distributed_checkpoint(kind: str) -> None:
    (model, opt), (other, again) = built(**KINDS[kind]), built(**KINDS[kind])
    opt.step(closure_of(model))
    model_state, state = copy.deepcopy(get_state_dict(model, opt))
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    again.step(closure_of(other))
    set_state_dict(other, again, model_state_dict=model_state, optim_state_dict=state)
    for _ in range(2):
        assert opt.step(closure_of(model)) == again.step(closure_of(other))
    assert_same(model, other)


def test_a_part_of_a_model_is_saved_alone() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    before = len(pickle.dumps(model))
    opt = CDRGE(model.parameters(), lr=0.01)
    file = io.BytesIO()
    torch.save(model[0].bias, file)
    assert len(pickle.dumps(model)) == before
    assert file.tell() < 4000
    assert opt.steps_taken == 0


def test_shared_memory_and_conversions_between_steps() -> None:
    (model, opt), (other, again) = built(), built()
    opt.step(closure_of(model))
    again.step(closure_of(other))
    other.share_memory()
    assert opt.step(closure_of(model)) == again.step(closure_of(other))
    assert_same(model, other)
    other.double()
    again.step(closure_of(other))
    assert {p.dtype for p in other.parameters()} == {torch.float64}


def test_a_second_optimizer_does_not_break_the_first() -> None:
    model, opt = built()
    opt.step(closure_of(model))
    second = CDRGE(reversed(list(model.parameters())), lr=2**-6, probes=4)
    for each in (opt, second, opt):
        before = parameters_of(model)
        each.step(closure_of(model))
        assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_dtypes_may_differ() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 2).double())
    x = torch.randn(16, 6, dtype=torch.bfloat16)
    opt = CDRGE(model.named_parameters(), lr=0.05, eps=2**-6, probes=16)

    def loss() -> Tensor:
        hidden = model[1](model[0](x).float())
        return (model[2](hidden.double()) - 1).square().mean()

    losses = [opt.step(loss) for _ in range(40)]
    assert opt.mode == "mixed"
    assert losses[-1] < 0.5 * losses[0]
    assert [opt.perturbation.theta(slot).dtype for slot in opt.space.slots] == [
        *[torch.float32] * 4,
        *[torch.float64] * 2,
    ]
    before = parameters_of(model)
    with pytest.raises(KeyError):
        opt.step(lambda: {}["no loss"])
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("frozen_first", [False, True])
def test_freezing_is_honoured_at_the_next_step(frozen_first: bool) -> None:
    model = small_model()
    model[0].requires_grad_(not frozen_first)
    opt = CDRGE(model.parameters(), lr=0.1)
    opt.step(closure_of(model))
    offsets = {p: opt.space.slot_of(p).offset for p in model.parameters()}
    before = parameters_of(model[0])
    model[0].requires_grad_(frozen_first)
    opt.step(closure_of(model))
    moved = any(not torch.equal(p, q) for p, q in zip(model[0].parameters(), before, strict=True))
    assert moved is frozen_first
    assert {p: opt.space.slot_of(p).offset for p in model.parameters()} == offsets


def test_offsets_come_with_the_state() -> None:
    """Frozen when the optimizer was built, and thawed when the next one is: the numbers stay what they were."""
    first, second = small_model(), small_model()
    first[0].requires_grad_(False)
    opt = CDRGE(first.parameters(), lr=0.1, probes=4)
    opt.step(closure_of(first))
    first[0].requires_grad_(True)
    opt.step(closure_of(first))
    again = CDRGE(second.parameters(), lr=0.1, probes=4)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(opt.state_dict())
    assert opt.step(closure_of(first)) == again.step(closure_of(second))
    assert_same(first, second)


def test_groups_may_be_added() -> None:
    model = small_model()
    opt = CDRGE(model[0].parameters(), lr=0.1, probes=4)
    opt.step(closure_of(model))
    opt.add_param_group({"params": list(model[2].parameters()), "lr": 0.05})
    before = parameters_of(model[2])
    opt.step(closure_of(model))
    assert any(not torch.equal(p, q) for p, q in zip(model[2].parameters(), before, strict=True))
    assert [slot.offset for slot in opt.space.slots] == [0, 128, 256, 384]
    embedding = nn.Embedding(5, 3, padding_idx=1)
    opt.add_param_group({"params": embedding.parameters()})
    opt.step(lambda: embedding.weight.sum())
    assert embedding.weight[1].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="lr must be finite"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "lr": -1.0})
    assert len(opt.param_groups) == 3
    opt.step(closure_of(model))


def test_maximize() -> None:
    (down, minimizing), (up, maximizing) = built(mode="shadow"), built(mode="shadow", maximize=True)
    minimizing.step(closure_of(down))
    maximizing.step(closure_of(up))
    for p, q, start in zip(down.parameters(), up.parameters(), small_model().parameters(), strict=True):
        torch.testing.assert_close(p - start, start - q)


@pytest.mark.parametrize("warm_up", [True, False])
def test_schedules_pass_through_zero(warm_up: bool) -> None:
    model, opt = built()
    schedule = LambdaLR(opt, lambda t: min(1.0, t / 3)) if warm_up else CosineAnnealingLR(opt, T_max=3)
    for _ in range(5):
        opt.step(closure_of(model))
        schedule.step()
    assert opt.steps_taken == 5


@pytest.mark.parametrize("make", [lambda m: m, lambda m: m.parameters(), lambda m: m.named_parameters()])
def test_the_padding_row_of_an_embedding_stays(make: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.Embedding(10, 4, padding_idx=2), nn.Linear(4, 1))
    tokens = torch.tensor([[1, 2, 3, 0, 2]])
    for options in ({}, {"mode": "shadow", "weight_decay": 0.1}, {"dense": "adam"}):
        opt = zo.optim.ZeroOrder(make(model), lr=0.05, eps=2**-6, probes=8, **options)
        before = model[0].weight.detach().clone()
        for _ in range(3):
            opt.step(lambda: (model(tokens) - 1).square().mean())
        assert model[0].weight[2].tolist() == [0.0] * 4
        assert not torch.equal(model[0].weight, before)


def test_autocast_around_a_step() -> None:
    model, opt = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        opt.step(closure_of(model))
    assert opt.last is not None
    assert len(set(opt.last.losses.flatten().tolist())) > 6


def test_a_step_in_a_compiled_function() -> None:
    (model, opt), (other, again) = built(), built()
    loss, same = closure_of(model), closure_of(other)

    @torch.compile(backend="eager")
    def train() -> float:
        return opt.step(loss)

    assert train() == again.step(same)
    assert_same(model, other)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "it returned None: does it end with `return loss`"),
        ({"loss": 1.0}, "not a dict: return the loss in it"),
        ((1.0, 2.0), "not a tuple: return the loss in it"),
        (torch.tensor(1j), "a real loss, not a complex one"),
        (True, "not a bool"),
        ("1.0", "not a str"),
    ],
)
def test_closures_that_return_something_else(returned: object, message: str) -> None:
    model, opt = built(mode="shadow")
    before = parameters_of(model)
    with pytest.raises(TypeError, match=message):
        opt.step(lambda: returned)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)


def test_a_closure_that_calls_backward() -> None:
    model, opt = built()

    def closure() -> Tensor:
        loss = closure_of(model)()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"the closure calls backward\(\), but a zero-order step needs losses alone"):
        opt.step(closure)


def batch_norm_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


class Counting(nn.Module):
    """A forward pass that replaces one buffer and changes another; a third stays."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("changed", torch.tensor([float("nan"), 0.0]))
        self.register_buffer("fixed", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        self.replaced = self.replaced + 1
        self.changed[1] += 1
        return self.linear(x)


@pytest.mark.parametrize("make", [batch_norm_model, Counting])
@pytest.mark.parametrize("raises", [False, True])
def test_buffers_are_put_back(make: Callable[[], nn.Module], raises: bool) -> None:
    model, x, calls = make(), torch.randn(16, 4), 0
    opt = CDRGE(model.parameters(), lr=0.01, eps=2**-7, probes=4)
    objects = list(model.buffers())
    before = [buffer.clone() for buffer in objects]

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        value = model(x).square().mean()
        if raises and calls % 5 == 0:
            raise KeyError("broken")
        return value

    for _ in range(3):
        if raises:
            with pytest.raises(KeyError):
                opt.step(loss)
        else:
            opt.step(loss)
        for now, known, value in zip(model.buffers(), objects, before, strict=True):
            assert now is known
            assert torch.equal(now.nan_to_num(), value.nan_to_num())
    model(x)  # outside of a step they change
    assert any(not torch.equal(now, value) for now, value in zip(model.buffers(), before, strict=True))


def test_losses_that_do_not_depend_on_the_parameters_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, opt = built()
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    for _ in range(3):
        opt.step(closure_of(model))
    (record,) = caplog.records
    assert "all 12 losses of this step are" in record.message
    assert "does the closure use the optimizer's parameters?" in record.message


def test_differences_at_rounding_level_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    parameter = nn.Parameter(torch.zeros(100))
    opt = CDRGE([parameter], lr=2**-9, probes=8)
    opt.step(lambda: parameter.sum() * 0.5 + 1.0)
    assert not caplog.records
    for _ in range(2):
        opt.step(lambda: parameter.sum() * 2e-3 + 1000.0)
    (record,) = caplog.records
    assert "but are rounded to multiples of 6.1e-05" in record.message


@pytest.mark.parametrize("mode", ["inplace", "shadow"])
def test_steps_out_of_scale_are_noticed(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    parameter = nn.Parameter(torch.full((100,), 0.25))
    opt = CDRGE([parameter], lr=1e-3, eps=0.125, probes=8, mode=mode)
    opt.step(lambda: parameter.sum())
    assert not caplog.records
    opt.param_groups[0]["eps"] = 0.5
    for _ in range(2):
        opt.step(lambda: parameter.sum())
    (record,) = caplog.records
    assert record.message.startswith("eps 0.5 is larger than every parameter (at most 0.2")
    opt.param_groups[0].update(eps=0.125, lr=0.2)
    opt.step(lambda: parameter.sum())
    assert "more than every parameter's size" in caplog.records[-1].message
    assert caplog.records[-1].message.endswith(": lower lr")


def test_randomness_in_a_closure_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, opt = built(check_every=100)
    calls = 0

    def steady() -> Tensor:
        nonlocal calls
        calls += 1
        return closure_of(model)()

    for _ in range(12):
        opt.step(steady)
    assert calls == 12 * 2 * opt.probes + 2
    assert not caplog.records
    noisy_model, noisy = built()
    dropout = nn.Dropout(0.5)
    for _ in range(12):
        noisy.step(lambda: closure_of(noisy_model)() + dropout(torch.ones(30)).mean())
    (record,) = caplog.records
    assert "at the same parameters: it must return the same loss" in record.message
    _, off = built(check_every=0)
    assert off.check_every == 0
    with pytest.raises(ValueError, match="check_every must be an integer of at least 0"):
        built(check_every=-1)
