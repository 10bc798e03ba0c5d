"""What a CDRGE step computes, and what it costs in passes and memory."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import zo_kernels as zo
from tests.flat import clear_padding, flat, write_flat
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.base import Backend
from zo_kernels.philox import probe_seeds


def small_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def closure_of(model, dtype=torch.float32):
    x = torch.linspace(-1, 1, 35).view(5, 7).to(dtype)
    return lambda: (model(x).double() - 1.0).square().mean()


@pytest.mark.parametrize("mode", ["inplace", "shadow"])
@pytest.mark.parametrize(("lr", "eps"), [(2**-6, None), (0.01, 0.01), (0.3, 2**-5)])
def test_the_update_is_equation_7(mode, lr, eps):
    model = small_model()
    loss = closure_of(model)
    opt = zo.optim.CDRGE(model.parameters(), lr=lr, eps=eps, probes=6, seed=11, mode=mode)
    opt.step(loss)  # from here on theta is on its grid
    theta = flat(opt.space)
    grid = next(iter(opt.perturbation.in_place.grids.values())).spacing if mode == "inplace" else 0.0
    used = round((eps or lr) / grid) * grid if grid else (eps or lr)
    seeds = torch.from_numpy(probe_seeds(11, 1, 6))
    coeffs = torch.zeros(6, dtype=torch.float64)
    for i, seed in enumerate(seeds.tolist()):
        p = zo.ops.probe(len(theta), seed)
        pair = []
        for sign in (1.0, -1.0):
            write_flat(opt.space, theta + sign * used * p)
            pair.append(float(loss().detach()))
        coeffs[i] = (pair[0] - pair[1]) / (2 * used) / 6
    write_flat(opt.space, theta)
    coeffs = -lr * coeffs.float().double()  # rows have float32 coefficients
    expected = zo.ops.accumulate_probes_(theta.clone(), coeffs, seeds, grid=grid)
    clear_padding(opt.space, expected)
    opt.step(loss)
    assert torch.equal(flat(opt.space), expected)
    assert not torch.equal(flat(opt.space), theta)
    # and with theta' of the formula as it stands in the paper, in float64
    dense = theta.double()
    for c, seed in zip(coeffs.tolist(), seeds.tolist(), strict=True):
        dense += c * zo.ops.probe(len(theta), seed, dtype=torch.float64)
    clear_padding(opt.space, dense)
    assert float((flat(opt.space) - dense).abs().max()) <= max(grid, 2**-23)


def test_decoupled_weight_decay():
    model = small_model()
    opt = zo.optim.CDRGE(model.parameters(), lr=0.5, eps=2**-6, probes=1, weight_decay=0.25)
    opt.step(lambda: 1.0)
    before = flat(opt.space)
    opt.step(lambda: 1.0)  # no gradient: only the decay is left
    spacing = next(iter(opt.perturbation.in_place.grids.values())).spacing
    assert torch.equal(flat(opt.space), torch.round(before * 0.875 / spacing) * spacing)


def test_groups_have_their_own_lr_and_eps():
    a, b = nn.Parameter(torch.zeros(100)), nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE(
        [{"params": [a], "lr": 0.5, "eps": 0.25}, {"params": [b], "lr": 2.0, "eps": 1.0}], lr=1.0, probes=1
    )
    seen = []
    opt.step(lambda: seen.append((a.clone(), b.clone())) or float(len(seen)))
    (a_plus, b_plus), (a_minus, b_minus) = seen
    p = zo.ops.probe(128 + 300, int(probe_seeds(0, 0, 1)[0]))
    assert torch.equal(a_plus, 0.25 * p[:100])
    assert torch.equal(b_plus, p[128:])
    assert torch.equal(a_minus, -a_plus)
    assert torch.equal(b_minus, -b_plus)
    # L+ - L- = -1 and n = 1: theta' = lr/eps * 1/2 * p
    assert torch.equal(a.detach(), 1.0 * p[:100])
    assert torch.equal(b.detach(), 1.0 * p[128:])


def test_an_empty_parameter_may_have_a_group_of_its_own():
    empty, full = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(200))
    opt = zo.optim.CDRGE([{"params": [empty], "eps": 0.25}, {"params": [full]}], lr=0.5, probes=1)
    losses = iter([2.0, 0.0])
    opt.step(lambda: next(losses))
    assert torch.equal(full.detach(), -zo.ops.probe(200, int(probe_seeds(0, 0, 1)[0])))


def test_schedulers_drive_lr_and_a_tied_eps():
    model = small_model()
    opt = zo.optim.CDRGE(model.parameters(), lr=0.5, probes=2)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    reach = []
    for _ in range(3):
        before = flat(opt.space)
        moved = []
        opt.step(lambda before=before, moved=moved: moved.append(float((flat(opt.space) - before).abs().max())) or 1.0)
        reach.append(moved[-1])
        scheduler.step()
    assert reach == pytest.approx([0.5, 0.25, 0.125], abs=1e-5)


def test_a_population_is_asked_once_and_gives_the_same_step():
    one_by_one, at_once = small_model(), small_model()
    first = zo.optim.CDRGE(one_by_one.parameters(), lr=2**-6, probes=5, seed=3)
    second = zo.optim.CDRGE(at_once.parameters(), lr=2**-6, probes=5, seed=3)

    class Population:
        calls = 0

        def population_loss(self, seeds, eps):
            self.calls += 1
            scratch = small_model()
            loss, theta = closure_of(scratch), flat(second.space)
            space, losses = zo.params.ParameterSpace.of(scratch), []
            for seed in seeds.tolist():
                for sign in (1, -1):
                    write_flat(space, zo.ops.apply_probe(theta, sign * eps, seed))
                    losses.append(float(loss()))
            return torch.tensor(losses).view(-1, 2)

    population = Population()
    with torch.no_grad():
        for _ in range(3):
            first.step(lambda: closure_of(one_by_one)().float())
            second.step(population)
    assert population.calls == 3
    assert torch.equal(flat(first.space), flat(second.space))


class CountingBackend(Backend):
    """Counts passes over theta on their way to the CPU kernels."""

    name = "counting"
    device_types = ("cpu",)

    def __init__(self):
        self.passes = 0

    def unavailable(self):
        return None

    def probe(self, *args):
        raise AssertionError("a step materialises no probe")

    def apply_probe(self, *args):
        self.passes += 1
        BACKENDS["cpu"].apply_probe(*args)

    def swap_probe(self, *args):
        self.passes += 1
        BACKENDS["cpu"].swap_probe(*args)

    def accumulate_probes(self, *args):
        self.passes += 1
        BACKENDS["cpu"].accumulate_probes(*args)

    def apply_probe_list(self, *args):
        self.passes += 1
        BACKENDS["cpu"].apply_probe_list(*args)

    def swap_probe_list(self, *args):
        self.passes += 1
        BACKENDS["cpu"].swap_probe_list(*args)

    def accumulate_probes_list(self, *args):
        self.passes += 1
        BACKENDS["cpu"].accumulate_probes_list(*args)

    def recurrent_nats(self, *args):
        raise AssertionError("a closure is evaluated by torch")

    recurrent_activity = recurrent_logits = recurrent_score = dnc_nats = dnc_score = recurrent_nats


def test_a_step_in_place_makes_2n_plus_1_passes(monkeypatch):
    counting = CountingBackend()
    monkeypatch.setitem(BACKENDS, "counting", counting)
    model = small_model()
    opt = zo.optim.CDRGE(model.parameters(), lr=2**-6, probes=8)
    opt.step(closure_of(model))  # the first step also rounds theta to its grid
    with zo.backend("counting"):
        opt.step(closure_of(model))
    assert counting.passes == 2 * 8 + 1


def test_a_step_in_place_allocates_far_less_than_theta():
    parameter = nn.Parameter(torch.zeros(1_000_000))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=4)
    values = iter(range(100))
    opt.step(lambda: float(next(values)))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        opt.step(lambda: float(next(values)))
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events())
    assert allocated < 0.01 * parameter.numel() * 4


def test_skipped_probes_are_counted_and_left_out():
    parameter = nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=0.5, probes=3)
    losses = iter([float("nan"), 1.0, 3.0, 1.0, 2.0, float("inf")])
    assert opt.step(lambda: next(losses)) == pytest.approx((1 + 3 + 1 + 2) / 4)
    assert opt.last.skipped == 2
    assert len(opt.last.gradient) == 1
    # one probe is left, the second, with L+ - L- = 2
    assert torch.equal(parameter.detach(), -zo.ops.probe(300, int(probe_seeds(0, 0, 3)[1])))


def test_a_step_learns():
    model = small_model()
    opt = zo.optim.CDRGE(model.parameters(), lr=0.1, eps=2**-6, probes=16)
    losses = [opt.step(closure_of(model)) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
