"""mode="streamed": torch functions see perturbed parameters, theta is written by updates alone and rounded by seed."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zo_kernels as zo
from tests.distributed.replicas import run_on_ranks
from zo_kernels.optim import ZeroOrder
from zo_kernels.perturb import Streamed
from zo_kernels.philox import probe_seeds

TOKENS = torch.randint(2000, (7, 3), generator=torch.Generator().manual_seed(0))


class Many(nn.Module):
    """Parameters of every kind and use: tied, of an LSTM, channels_last, with a padding row, scalar; and views."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2000, 128)
        self.padded = nn.Embedding(2000, 128, padding_idx=int(TOKENS[0, 0]))
        self.lstm = nn.LSTM(128, 16)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 128)
        self.scale = nn.Parameter(torch.ones(()))
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = nn.Linear(128, 2000, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.up.weight
        assert self.head.weight is self.table.weight
        assert (weight.shape, weight.requires_grad, weight.grad) == ((128, 16), True, None)
        x, _ = self.lstm(self.table(tokens) + self.padded(tokens))
        x = self.norm(x)
        x = self.up(x) * self.scale + x @ weight.t()
        x = x + self.conv(torch.ones(1, 3, 5, 5, dtype=x.dtype)).sum() + weight[[3, 4]].sum() + weight.data.mean()
        x = x + torch.stack([self.norm.weight, self.norm.bias]).sum() + sum(p.float().mean() for p in self.parameters())
        return self.head(x.to(weight.dtype))

    def loss(self) -> Tensor:
        return F.cross_entropy(self(TOKENS).double().flatten(0, 1), TOKENS.flatten())


def many(dtype: torch.dtype) -> Many:
    torch.manual_seed(0)
    return Many().to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("estimator", "distribution"), [("cd", "rademacher"), ("2-spsa", "rademacher"), ("cd", "normal")]
)
def test_losses_have_the_bits_of_a_shadow_copy(dtype: torch.dtype, estimator: str, distribution: str) -> None:
    """And theta is not written: its bits and its version counters are what they were."""
    losses = {}
    for mode in ("shadow", "streamed"):
        model = many(dtype)
        before = [(p.detach().clone(), p._version) for p in model.parameters()]
        opt = ZeroOrder(
            model,
            lr=1e-3,
            eps=2**-7,
            probes=2,
            estimator=estimator,
            distribution=distribution,
            mode=mode,
            check_every=0,
        )
        losses[mode] = opt.estimate(model.loss).losses
        assert opt.mode == mode
        assert all(torch.equal(p, x) for p, (x, _) in zip(model.parameters(), before, strict=True))
        if mode == "streamed":
            assert [p._version for p in model.parameters()] == [version for _, version in before]
    assert torch.equal(losses["shadow"], losses["streamed"])
    assert len(losses["streamed"].unique()) > 1


def one(**options: Any) -> tuple[nn.Linear, ZeroOrder]:
    torch.manual_seed(0)
    model = nn.Linear(16, 8).bfloat16()
    options = {"lr": 2**-7, "eps": 2**-5, "probes": 2, "seed": 3, "mode": "streamed", "check_every": 0, **options}
    return model, ZeroOrder(model, **options)


X = torch.linspace(-1, 1, 80).view(5, 16)


def loss_of(model: nn.Module) -> Tensor:
    return (model(X.bfloat16()).double() - 1).square().mean()


@pytest.mark.parametrize("mode", ["shadow", "streamed"])
def test_ways_to_a_parameter(mode: str) -> None:
    """By a list, a dictionary, a tensor made before the step, vmap, inference mode, autocast and torch.func."""
    model, opt = one(mode=mode)
    outside, transposed = {name: p.detach() for name, p in model.named_parameters()}, model.weight.detach().t()[2:]
    seen = []

    def closure() -> float:
        with torch.inference_mode():
            total = float(torch.cat([model.weight.view(-1), model.bias]).sum())
        total += float(torch.func.functional_call(model, outside, X.bfloat16()).double().sum()) + float(
            transposed.sum()
        )
        total += float(torch.vmap(lambda x: F.linear(x, model.weight))(X.bfloat16()).double().sum())
        with torch.autocast("cpu", torch.bfloat16):
            total += float(model(X).double().sum())
        seen.append(total)
        return total

    opt.estimate(closure)
    assert seen == SEEN.setdefault("ways", seen)
    assert len(set(seen)) == 4


SEEN: dict[str, list[float]] = {}


def test_float32_parameters_under_autocast() -> None:
    losses = []
    for mode in ("shadow", "streamed"):
        torch.manual_seed(0)
        model = nn.Linear(16, 8)
        opt = ZeroOrder(model, lr=2**-7, eps=2**-5, probes=2, mode=mode)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(opt.estimate(lambda: model(X).double().square().mean()).losses)  # noqa: B023
    assert torch.equal(*losses)


@pytest.mark.slow  # imports Dynamo
def test_compiled_functions_run_eagerly() -> None:
    losses = []
    for mode in ("shadow", "streamed"):
        model, opt = one(mode=mode)
        compiled = torch.compile(model, backend="eager")
        losses.append([opt.step(lambda: loss_of(compiled)) for _ in range(2)])  # noqa: B023
    assert losses[0][0] == losses[1][0]


def test_what_needs_no_values_makes_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt = one()
    made: list[str] = []
    values = Streamed.values
    monkeypatch.setattr(Streamed, "values", lambda self, slot: made.append(slot.name) or values(self, slot))

    def closure() -> float:
        w = model.weight
        assert (w.shape, w.size(0), w.dim(), w.numel(), len(w), w.stride(), w.dtype) == (
            (8, 16), 8, 2, 128, 8, (16, 1), torch.bfloat16,
        )  # fmt: skip
        assert (w.device.type, w.is_leaf, w.grad, w.is_cuda, w.layout) == ("cpu", True, None, False, torch.strided)
        assert (w.is_contiguous(), w.is_floating_point(), torch.is_floating_point(w)) == (True, True, True)
        assert w.requires_grad
        w.grad = None
        isinstance(w, nn.Parameter)
        return 1.0

    opt.step(closure)
    assert not made


def test_an_embedding_is_perturbed_where_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = nn.Embedding(2000, 128).bfloat16(), []
    rows = Streamed.rows
    monkeypatch.setattr(Streamed, "rows", lambda self, slot, n: numbers.append(n) or rows(self, slot, n))
    monkeypatch.setattr(Streamed, "values", lambda *_: pytest.fail("the whole table was copied"))
    ZeroOrder(model, lr=1e-3, probes=1, mode="streamed").step(lambda: model(TOKENS).double().sum())
    assert numbers == [TOKENS.unique().tolist()] * 2
    monkeypatch.undo()
    opt = ZeroOrder(model, lr=1e-3, probes=1, mode="streamed")
    with pytest.raises(IndexError):
        opt.step(lambda: model(TOKENS + 1990).double().sum())


def assign_data(model: nn.Linear) -> None:
    model.weight.data = model.weight.data * 2


REFUSED: dict[str, tuple[Callable[[nn.Linear], object], str]] = {
    "add_": (lambda m: m.weight.add_(1), "writes parameter weight"),
    "setitem": (lambda m: m.weight.__setitem__(0, 1.0), "writes parameter weight"),
    "out": (lambda m: torch.add(m.weight, 1, out=m.weight), "writes parameter weight"),
    "foreach": (lambda m: torch._foreach_mul_(list(m.parameters()), 2.0), "writes parameter weight"),
    "inference": (lambda m: torch.inference_mode()(lambda: m.weight.zero_())(), "writes parameter weight"),
    "view": (lambda m: m.weight.t()[0].mul_(2), "writes parameter weight"),
    "data.clamp_": (lambda m: m.weight.data.clamp_(-1, 1), "writes parameter weight"),
    "detach": (lambda m: m.weight.detach().view(-1)[3:].zero_(), "writes parameter weight"),
    "unbind": (lambda m: m.weight.unbind()[1].zero_(), "writes parameter weight"),
    "max_norm": (lambda m: F.embedding(torch.tensor([1]), m.weight, max_norm=0.01), "writes parameter weight"),
    "data": (assign_data, "uses __set__ of parameter weight"),
    "data_ptr": (lambda m: m.weight.data_ptr(), "uses data_ptr of parameter weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_in_a_closure(name: str) -> None:
    act, message = REFUSED[name]
    model, opt = one()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=f"^the closure {message}, .* use mode='shadow'$"):
        opt.step(lambda: act(model))
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert opt.steps_taken == 0


def test_other_views_of_the_memory_are_refused() -> None:
    flat_memory = torch.zeros(400, dtype=torch.bfloat16)
    parameter = nn.Parameter(flat_memory[100:300])
    opt = ZeroOrder([parameter], lr=0.1, probes=1, mode="streamed")
    integers = parameter.detach().view(torch.int16)
    for x, message in ((flat_memory, "a tensor that overlaps"), (integers, "another view of")):
        with pytest.raises(RuntimeError, match=f"uses {message} parameter"):
            opt.step(lambda: x.sum())  # noqa: B023


def test_what_is_refused_from_the_start() -> None:
    with pytest.raises(ValueError, match=r"^a dense rule keeps float32 state .* mode='shadow'$"):
        one(dense="adam")
    model = zo.models.LSTM(vocab_size=5, embed_dim=4, hidden_size=8, num_heads=2)
    opt = ZeroOrder(model.parameters(), lr=0.1, probes=1, estimator="2-spsa", mode="streamed")
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="moves the parameters that a population reads"):
        opt.step(model.population(tokens, tokens))


def test_a_population_reads_theta() -> None:
    losses = []
    for mode in ("shadow", "streamed"):
        torch.manual_seed(0)
        model = zo.models.LSTM(vocab_size=5, embed_dim=4, hidden_size=8, num_heads=2).bfloat16()
        opt = ZeroOrder(model.parameters(), lr=0.1, probes=2, mode=mode)
        tokens = torch.zeros(1, 3, dtype=torch.int64)
        losses.append(opt.estimate(model.population(tokens, tokens)).losses)
    assert torch.equal(*losses)


def test_a_parameter_that_no_torch_function_sees_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model, opt = one()

    def in_another_thread() -> float:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(loss_of(model)))
        thread.start()
        thread.join()
        return float(found[0])

    for _ in range(2):
        opt.step(in_another_thread)
    messages = [r.message for r in caplog.records if r.levelno == logging.WARNING and "no torch function" in r.message]
    assert len(messages) == 1
    assert "use weight and 1 more parameters: " in messages[0]
    caplog.clear()
    model, opt = one()
    opt.step(lambda: loss_of(model))
    assert not caplog.records


def test_the_update_is_one_op() -> None:
    """With decay and maximize, by the first seed of the step; float32 parameters are rounded to nearest."""
    torch.manual_seed(0)
    half, single = nn.Parameter(torch.randn(300).bfloat16()), nn.Parameter(torch.randn(50))
    before = half.detach().clone(), single.detach().clone()
    opt = ZeroOrder(
        [half, single], lr=2**-9, eps=2**-5, probes=3, seed=8, weight_decay=0.5, maximize=True, mode="streamed"
    )
    opt.replay(torch.tensor([0.5, -0.25, 2.0]))
    seeds = torch.from_numpy(probe_seeds(8, 0, 3))
    rows = [2**-9 * c for c in (0.5, -0.25, 2.0)], seeds
    options = {"decay": 1 - 2**-10}
    zo.ops.accumulate_probes_(before[0], *rows, rounding_seed=int(seeds[0]), **options)
    zo.ops.accumulate_probes_(before[1], *rows, offset=384, **options)
    assert torch.equal(half, before[0])
    assert torch.equal(single, before[1])


def test_small_updates_add_up_in_the_mean() -> None:
    """256 moves of 2^-13, each far below the last bit (2^-7) of bfloat16 at 1: together 2^-5."""
    parameter = nn.Parameter(torch.ones(1 << 14, dtype=torch.bfloat16))
    opt = ZeroOrder([parameter], lr=2**-13, eps=2**-7, probes=1, mode="streamed")
    for _ in range(256):
        p = zo.ops.probe(1 << 14, int(probe_seeds(0, opt.steps_taken, 1)[0]))
        before = parameter.detach().clone()
        opt.replay(torch.tensor([-1.0]))
        moved = (parameter.detach() - before).float()
        assert bool((moved * p >= 0).all())
    expected = sum(zo.ops.probe(1 << 14, int(probe_seeds(0, t, 1)[0])) for t in range(256)) * 2**-13
    slope = float((parameter.detach().double() - 1) @ expected.double() / expected.double().square().sum())
    assert abs(slope - 1) < 0.05


def train(rank: int, steps: int, backend: str, threads: int) -> bytes:
    """Losses of a few float64 numbers, which no number of threads changes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 3).half()).bfloat16()
    model[2].half()
    opt = ZeroOrder(model, lr=2**-6, eps=2**-5, probes=2, seed=5, weight_decay=0.01, mode="streamed", check_every=0)

    def loss() -> Tensor:
        hidden = torch.tanh(X.double() @ model[0].weight.double().t() + model[0].bias.double())
        return (hidden @ model[2].weight.double().t() + model[2].bias.double() - 1).square().mean()

    with zo.backend(backend):
        for _ in range(steps):
            opt.step(loss)
    return b"".join(p.detach().view(torch.uint8).numpy().tobytes() for p in model.parameters())


@pytest.mark.parametrize("steps", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_bits_do_not_depend_on_backend_threads_or_processes(steps: int) -> None:
    alone = train(0, steps, "cpu", 1)
    assert alone != train(0, 0, "cpu", 1)
    assert train(0, steps, "cpu", 2) == alone
    assert train(0, steps, "reference", 1) == alone
    if steps == 1000:  # tests/distributed/test_replicas.py has a few steps
        assert run_on_ranks(2, train, steps, "cpu", 1) == [alone] * 2


class TestState:
    def run(self, model: nn.Linear, opt: ZeroOrder, steps: int) -> list[Tensor]:
        rows = []
        for _ in range(steps):
            opt.step(lambda: loss_of(model))
            assert opt.last is not None
            rows.append(opt.last.coeffs)
        return rows

    @pytest.mark.parametrize("mode", ["streamed", "auto"])
    def test_resume_and_replay(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if mode == "auto":
            monkeypatch.setattr("zo_kernels.perturb.perturbation.device_memory", lambda device: 6 * 136 - 1)
        model, opt = one(mode=mode)
        start = copy.deepcopy(model.state_dict())
        rows = self.run(model, opt, 2)
        saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
        rows += self.run(model, opt, 2)
        assert opt.mode == "streamed"

        again, replayed = one(mode=mode)
        again.load_state_dict(start)
        for coeffs in rows:
            replayed.replay(coeffs)
        assert torch.equal(again.weight, model.weight)

        monkeypatch.undo()  # the saved state decides
        other, resumed = one(mode="auto")
        assert resumed.mode == "shadow"
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        self.run(other, resumed, 2)
        assert resumed.mode == "streamed"
        assert torch.equal(other.weight, model.weight)
        for refusing in ("shadow", "inplace"):
            wide = nn.Linear(16, 8)
            with pytest.raises(ValueError, match="this state was saved in mode"):
                ZeroOrder(wide, lr=1.0, mode=refusing).load_state_dict(saved[1])

    def test_a_state_with_shadow_copies_is_refused(self) -> None:
        for mode in ("shadow", "auto"):
            model, opt = one(mode=mode)
            self.run(model, opt, 1)
            with pytest.raises(ValueError, match=f"saved in mode '{mode}', but the optimizer has mode 'streamed'"):
                one()[1].load_state_dict(opt.state_dict())

    def test_auto_streams_what_has_no_room(self, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
        """6 bytes for each of 128 + 8 elements of 16 bits, and 4 for each of 10 others: 856 together."""
        caplog.set_level(logging.INFO)
        for room, mode in ((856, "mixed"), (855, "mixed")):
            monkeypatch.setattr("zo_kernels.perturb.perturbation.device_memory", lambda device, n=room: n)
            half, single = nn.Linear(16, 8).bfloat16(), nn.Linear(9, 1)
            opt = ZeroOrder([*half.parameters(), *single.parameters()], lr=0.1)
            assert opt.mode == mode
            assert [s.numel for s in opt.perturbation.in_place.slots] == [9, 1]
            assert len(opt.perturbation.streamed.slots) == (2 if room == 855 else 0)
            assert len(opt.perturbation.shadow.slots) == (2 if room == 856 else 0)
            assert any("are streamed" in record.message for record in caplog.records) == (room == 855)
        assert ZeroOrder(half, lr=0.1, dense="adam").mode == "shadow"
