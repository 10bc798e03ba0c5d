"""The precision bar: what a step lives on, L+ - L-, follows float64 down to small eps. And memory is flat in T."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.recurrent import Shape, each_cell, make_batch, make_model, make_seeds
from zo_kernels import _C
from zo_kernels.models import MODELS, RecurrentLM

ROOT = Path(__file__).parents[2]

# One minus the correlation. The project asks for 1e-4 and 1e-3; 8e-12 and 7e-10 are the worst measured, and losses
# rounded to float32 would already miss these bars.
BARS = {2**-7: 1e-10, 2**-10: 1e-8}

CASES = [(cell, Shape(30, 16, 3, 16, 32, 8), trained) for cell in MODELS for trained in (False, True)]
CASES += [("elman", Shape(30, 16, 3, 16, 1, 100), False)]


def differences(losses: Tensor) -> Tensor:
    return losses[:, 0] - losses[:, 1]


def in_float64(model: RecurrentLM) -> RecurrentLM:
    """A copy with the same values, whose probes are then added, and losses computed, in float64."""
    sizes = model.vocab_size, model.embed_dim, model.hidden_size, model.num_heads
    wide = MODELS[model.cell](*sizes, dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    return wide


@pytest.mark.parametrize(("cell", "shape", "trained"), CASES, ids=str)
def test_differences_correlate_with_float64(cell: str, shape: Shape, trained: bool) -> None:
    model = make_model(cell, shape)
    if not trained:  # smaller differences
        model.reset_parameters(torch.Generator().manual_seed(0))
    tokens, targets = make_batch(shape)
    seeds, exact = make_seeds(64), in_float64(model)
    for eps, bar in BARS.items():
        expected = differences(exact.population_loss(tokens, targets, seeds, eps))
        for isa in _C.supported_isas():
            _C.set_isa(isa)
            actual = differences(model.population_loss(tokens, targets, seeds, eps))
            correlation = float(torch.corrcoef(torch.stack([actual, expected]))[0, 1])
            assert 1 - correlation < bar, isa
            assert float(actual.norm() / expected.norm()) == pytest.approx(1, abs=1e-4), isa


@each_cell
def test_a_difference_is_the_slope_along_the_probe(cell: str) -> None:
    """Against autograd: (L+ - L-) / (2 eps) is the gradient's component along p, up to eps squared."""
    shape = Shape(9, 4, 2, 5, 4, 6)
    model, (tokens, targets), seeds, eps = make_model(cell, shape), make_batch(shape), make_seeds(20), 2**-8
    gradients = torch.autograd.grad(model.loss(tokens, targets), list(model.parameters()))
    slopes = differences(model.population_loss(tokens, targets, seeds, eps)) / (2 * eps)
    offset, expected = 0, torch.zeros(20, dtype=torch.float64)
    for gradient in gradients:
        for i, seed in enumerate(seeds.tolist()):
            expected[i] += gradient.flatten().double() @ zo.ops.probe(
                gradient.numel(), seed, dtype=torch.float64, offset=offset
            )
        offset += -(-gradient.numel() // 128) * 128
    torch.testing.assert_close(slopes, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


MEASURE_MEMORY = """
import torch
from zo_kernels.models import MODELS

torch.set_num_threads(1)
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
models = [make(30, 16, 16, seed=0) for make in MODELS.values()]
seeds = torch.tensor([1, 2])
for steps in (10, 100_000):
    tokens, targets = torch.zeros(1, steps, dtype=torch.int64), torch.ones(1, steps, dtype=torch.int64)
    for model in models:
        assert model.population_loss(tokens, targets, seeds, 0.1).isfinite().all()
        assert model.next_logits(tokens)[0].isfinite().all()
    print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
def test_memory_does_not_grow_with_time() -> None:
    """100,000 steps take what 10 take, but for some bytes a position: hidden states of one member alone were 6.4 MB.

    In a process of its own, and from /proc: getrusage's ru_maxrss begins with that of the process that started it.
    """
    command = [sys.executable, "-c", MEASURE_MEMORY]
    # A fixed threshold, so that glibc gives large blocks back; its own moves, and the peak with it, from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())  # KiB
    tokens = 2 * 100_000 * 8 / 1024
    assert long - short < tokens + 2 * 1024
