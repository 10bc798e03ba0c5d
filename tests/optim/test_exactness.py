"""Theta is bit for bit what it should be: between probes, after errors, after a resume."""

import copy
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zo_kernels as zo
from tests.flat import flat

MODES = [
    ("inplace", torch.float32),
    ("inplace", torch.float64),
    ("shadow", torch.float32),
    ("shadow", torch.bfloat16),
    ("shadow", torch.float16),
    ("streamed", torch.float32),
    ("streamed", torch.bfloat16),
    ("streamed", torch.float16),
]


def bits(x):
    return x.detach().contiguous().view(torch.uint8).clone()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("mode", "dtype"), MODES)
@given(
    scale=st.floats(1e-3, 1e3), eps=st.floats(1e-2, 3.0), probes=st.integers(1, 5), stop=st.integers(0, 10),
    seed=st.integers(0, 2**64 - 1), shape=st.sampled_from([(1,), (127,), (130, 3), (5000,)]),
)  # fmt: skip
def test_theta_is_restored_wherever_the_closure_stops(mode, dtype, scale, eps, probes, stop, seed, shape):
    torch.manual_seed(0)
    params = [nn.Parameter((scale * torch.randn(shape)).to(dtype)), nn.Parameter(torch.zeros(40, dtype=dtype))]
    opt = zo.optim.CDRGE(params, lr=1e-3, eps=eps, probes=probes, seed=seed, mode=mode)
    opt.step(lambda: 1.0)  # rounds theta to its grid
    before, calls = bits(flat(opt.space)), 0

    def closure():
        nonlocal calls
        assert not torch.equal(bits(flat(opt.space)), before)
        if calls == stop:
            raise Interrupted
        calls += 1
        return float("nan")

    with pytest.raises((Interrupted, zo.errors.DivergenceError)):
        opt.step(closure)
    assert torch.equal(bits(flat(opt.space)), before)
    assert opt.steps_taken == 1


@pytest.mark.parametrize(("mode", "dtype"), MODES)
def test_many_cycles_leave_no_trace(mode, dtype):
    parameter = nn.Parameter(torch.randn(3000).to(dtype))
    opt = zo.optim.CDRGE([parameter], lr=0.1, probes=100, mode=mode)
    opt.step(lambda: 1.0)
    before = bits(parameter)
    for _ in range(3):
        opt.step(lambda: 1.0)  # equal losses: the update is zero
    assert torch.equal(bits(parameter), before)


@pytest.fixture
def interrupts():
    """Python's own SIGINT: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_in_the_middle_of_a_step_restores_theta(interrupts):
    parameter = nn.Parameter(torch.randn(3000))
    opt = zo.optim.CDRGE([parameter], lr=0.1, probes=50)
    opt.step(lambda: 1.0)
    before, calls = bits(parameter), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 31:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    assert torch.equal(bits(parameter), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("mode", "dtype"), MODES)
@pytest.mark.parametrize("model_first", [True, False])
def test_resume_continues_bit_for_bit(mode, dtype, model_first):
    def build():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)
        opt = zo.optim.CDRGE(model.parameters(), lr=0.05, eps=2**-5, probes=4, seed=9, mode=mode, weight_decay=0.01)
        return model, opt, torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)

    def run(model, opt, scheduler, steps):
        x = torch.linspace(-1, 1, 35).view(5, 7).to(dtype)
        for _ in range(steps):
            opt.step(lambda: (model(x).double() - 1).square().mean())
            scheduler.step()

    model, opt, scheduler = build()
    run(model, opt, scheduler, 3)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict(), scheduler.state_dict()))
    run(model, opt, scheduler, 4)

    other, other_opt, other_scheduler = build()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(30.0)  # a grid of its own would be coarser
    loads = [lambda: other.load_state_dict(saved[0]), lambda: other_opt.load_state_dict(saved[1])]
    for load in loads if model_first else reversed(loads):
        load()
    other_scheduler.load_state_dict(saved[2])
    run(other, other_opt, other_scheduler, 4)
    assert torch.equal(bits(flat(opt.space)), bits(flat(other_opt.space)))
    assert other_opt.steps_taken == 7


@pytest.mark.parametrize(("mode", "dtype"), MODES)
def test_parameters_written_between_steps_are_taken_in(mode, dtype):
    parameter = nn.Parameter(torch.zeros(200, dtype=dtype))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=2, mode=mode)
    opt.step(lambda: 1.0)
    with torch.no_grad():
        parameter.fill_(0.75)
    opt.step(lambda: 1.0)
    assert torch.equal(parameter.detach(), torch.full((200,), 0.75, dtype=dtype))


def test_small_updates_of_16_bit_parameters_add_up():
    parameter = nn.Parameter(torch.ones(256, dtype=torch.bfloat16))
    opt = zo.optim.CDRGE([parameter], lr=2**-7, eps=2**-7, probes=1, seed=0, check_every=0)
    p = zo.ops.probe(256, 77)
    for _ in range(64):  # each moves theta by 2^-13, far below the last bit (2^-8) of bfloat16 at 1
        before = opt.perturbation.theta(opt.space.slots[0]).clone() if opt.steps_taken else torch.ones(256)
        losses = iter([2.0**-12, 0.0])
        opt.step(lambda losses=losses: next(losses))
        assert float((opt.perturbation.theta(opt.space.slots[0]) - before).abs().max()) == 2**-13
    assert p.abs().sum() == 256
    assert flat(opt.space).dtype == torch.bfloat16
    assert torch.equal(parameter.detach(), opt.perturbation.theta(opt.space.slots[0]).bfloat16())


def test_the_kernels_bump_the_version_of_every_parameter():
    parameter = nn.Parameter(torch.ones(10))
    opt = zo.optim.CDRGE([parameter], lr=0.5, probes=1)
    loss = (parameter * parameter).sum()
    opt.step(lambda: 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_update_below_the_grid_is_said_once(caplog):
    parameter = nn.Parameter(torch.ones(10))
    opt = zo.optim.CDRGE([parameter], lr=1e-9, eps=2**-6, probes=1)
    for _ in range(2):
        losses = iter([1.0, 0.5])
        opt.step(lambda losses=losses: next(losses))
    assert [record.message for record in caplog.records if "rounds to 0" in record.message]
    assert len(caplog.records) == 1


def test_a_signal_during_the_update_takes_the_whole_step(interrupts, monkeypatch):
    parameters = [nn.Parameter(torch.zeros(300)) for _ in range(2)]
    interrupted, undisturbed = (zo.optim.CDRGE([p], lr=0.5, probes=1) for p in parameters)
    backend = zo.backends.BACKENDS["cpu"]
    accumulate = backend.accumulate_probes_list

    def accumulate_and_interrupt(x, coeffs, *args):
        accumulate(x, coeffs, *args)
        if len(coeffs):  # the update, not the rounding to the grid
            os.kill(os.getpid(), signal.SIGINT)

    losses = [iter([3.0, 1.0]) for _ in parameters]
    undisturbed.step(lambda: next(losses[0]))
    monkeypatch.setattr(backend, "accumulate_probes_list", accumulate_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupted.step(lambda: next(losses[1]))
    assert torch.equal(*parameters)
    assert interrupted.steps_taken == undisturbed.steps_taken == 1
