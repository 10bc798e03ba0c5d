"""What mode "auto" decides for each parameter: its grid, a wider one, or a shadow copy."""

import logging

import pytest
import torch
from torch import Tensor, nn

from zo_kernels.optim import CDRGE


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_auto_gives_each_parameter_its_own_grid() -> None:
    """One weight of 300 does not make the grid of the others coarse. Steps are too small for float32 at 300."""
    torch.manual_seed(0)
    model, large = nn.Linear(8, 8), nn.Parameter(torch.tensor([300.0]))
    opt = CDRGE([*model.parameters(), large], lr=1e-5, eps=2**-10, probes=16)
    x = torch.randn(32, 8)
    first = parameters_of(model)
    for _ in range(3):
        opt.step(lambda: (model(x) - x).square().mean())
    spacings = [opt.perturbation.spacing(slot) for slot in opt.space.slots]
    assert spacings == [2.0**-22, 2.0**-22, 2.0**-13]
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), first, strict=True))


def test_auto_takes_a_shadow_where_the_grid_swallows_updates() -> None:
    """An outlier makes the grid of its own parameter too coarse, though float32 would show the updates."""
    start = torch.full((1000,), 0.01)
    start[0] = 300.0
    for mode, moves in (("inplace", False), ("auto", True)):
        parameter = nn.Parameter(start.clone())
        opt = CDRGE([parameter], lr=1e-5, eps=2**-10, probes=1, mode=mode)
        losses = iter([2.0**-10, 0.0] * 2)
        opt.step(lambda losses=losses: next(losses))
        on_the_grid = parameter.detach().clone()
        opt.step(lambda losses=losses: next(losses))
        assert (not torch.equal(parameter.detach(), on_the_grid)) is moves
        assert opt.mode == ("shadow" if moves else "inplace")


def test_auto_takes_a_shadow_for_an_eps_below_the_grid() -> None:
    parameter = nn.Parameter(torch.full((100,), 1000.0))
    opt = CDRGE([parameter], lr=1e-4, eps=2.0**-13, probes=2)
    opt.step(lambda: parameter.double().sum())
    assert opt.mode == "shadow"


def test_auto_widens_a_grid_that_a_parameter_outgrows() -> None:
    parameter = nn.Parameter(torch.full((100,), 3.0))
    opt = CDRGE([parameter], lr=1.0, eps=2.0**-6, probes=1)
    assert opt.mode == "inplace"
    for _ in range(3):
        losses = iter([2.0**-2, 0.0])  # moves by 8, within the range of the first grid, 16
        opt.step(lambda losses=losses: next(losses))
    assert opt.mode == "inplace"
    assert opt.perturbation.spacing(opt.space.slots[0]) > 2.0**-20


def test_auto_looks_at_the_parameters_of_each_step() -> None:
    """So that a resumed run, which has not seen the steps before, decides alike."""
    parameter = nn.Parameter(torch.full((1000,), 200.0))
    opt = CDRGE([parameter], lr=1e-6, eps=2**-10, probes=1)
    for value, mode in ((200.0, "inplace"), (0.01, "shadow")):
        with torch.no_grad():
            parameter[:900] = value
        losses = iter([2.0**-8, 0.0])  # moves by 2e-6: float32 shows that at 0.01, but not at 200
        opt.step(lambda losses=losses: next(losses))
        assert opt.mode == mode


def test_nothing_is_said_about_parameters_that_are_zero(caplog: pytest.LogCaptureFixture) -> None:
    parameter = nn.Parameter(torch.zeros(100))
    opt = CDRGE([parameter], lr=1e-3, eps=2**-7, probes=2, mode="inplace")
    for _ in range(3):
        opt.step(lambda: 1.0)
    assert all("larger than every parameter" not in record.message for record in caplog.records)


def test_a_shadow_copy_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "zo_kernels"):
        parameter = nn.Parameter(torch.full((100,), 1000.0))
        CDRGE([("weight", parameter)], lr=1e-4, eps=2.0**-13, probes=2).step(lambda: parameter.double().sum())
    assert "parameter weight gets a shadow copy: its grid of 0.000244141 is coarser than eps" in caplog.text
