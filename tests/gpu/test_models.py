"""Models and their populations on a GPU, within the rounding of their arithmetic of the CPU's.

The same is done on the CPU, against the reference.
"""

from __future__ import annotations

import copy
import importlib.util
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.cases import each_device, right_beside
from tests.models.flashrnn.models import make_flash
from tests.models.test_population_bfloat16 import EPS, emulated
from tests.recurrent import SMALL, TOLERANCE, Shape, each_cell, make_batch, make_model, make_seeds, make_states
from zo_kernels.backends.recurrent import fused_cell, streamed
from zo_kernels.models import IGNORE_INDEX, MODEL_NAMES, LanguageModel, build_model
from zo_kernels.models.build import has_memory
from zo_kernels.train.bptt import BPTT

SHAPES = SMALL, Shape(30, 16, 3, 15, 5, 12), Shape(100, 100, 12, 20, 70, 4)
TINY = Shape(vocab=11, embed=8, heads=2, head_dim=8, batch=4, time=6)

ROUNDING = {torch.float32: 1.0, torch.bfloat16: 1.0, torch.float16: 1.0, torch.float64: 1e-6}
"""Of TOLERANCE, by the parameters' dtype."""


def without_tf32() -> AbstractContextManager[None]:
    """cuDNN's recurrent layers, in `forward` and `loss`, round factors to TF32 unless told not to."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def skip_without_flashrnn() -> None:
    if importlib.util.find_spec("flashrnn") is None:
        pytest.skip("flashrnn is not installed")


def on(device: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(device, copy=True) for x in tensors)


def assert_near(actual: Tensor, expected: Tensor, allowed: float) -> None:
    """`allowed` is of the largest magnitude, where that is above 1."""
    allowed *= max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=0, atol=allowed)


@each_device
@each_cell
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_populations(dtype: torch.dtype, cell: str, device: str) -> None:
    """With and without states, and once with a frozen weight."""
    allowed = ROUNDING[dtype] * TOLERANCE
    for shape in SHAPES[: 2 if device == "cpu" else 3]:
        model, batch, seeds = make_model(cell, shape, dtype), make_batch(shape), make_seeds(5)
        model.embedding.requires_grad_(shape is not SMALL)
        there, scored = copy.deepcopy(model).to(device), int((batch[1] != IGNORE_INDEX).sum())
        for states in ((), make_states(model, len(seeds), shape.batch)):
            last, carried = on("cpu", *states), on(device, *states)
            with zo.backend(right_beside(device)):
                expected = model.population_nats(*batch, seeds, EPS, states=last)
            nats = there.population_nats(*on(device, *batch), seeds, EPS, states=carried)
            torch.testing.assert_close(nats.cpu(), expected, rtol=0, atol=allowed * scored)
            for got, wanted in zip(carried, last, strict=True):
                assert_near(got, wanted, allowed)


@pytest.mark.gpu
@each_cell
def test_the_fused_cell(cell: str) -> None:
    """In test_populations it computes the cells of float32."""
    device = torch.device("cuda", 0)
    assert fused_cell.fused_cell(device, torch.float32) is fused_cell.advance
    assert fused_cell.deviation(cell, device) < 1e-6


@each_device
@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forwards(dtype: torch.dtype, cell: str, device: str) -> None:
    for shape in SHAPES[: 2 if device == "cpu" else 3]:
        model, batch = make_model(cell, shape, dtype), make_batch(shape)
        there = copy.deepcopy(model).to(device)
        for of in (lambda m, x, y: m(x)[0], lambda m, x, y: m.loss(x, y), lambda m, x, y: m.next_logits(x)[0]):
            with torch.no_grad(), without_tf32():
                actual, expected = of(there, *on(device, *batch)), of(model, *batch)
            assert_near(actual, expected, 4 * ROUNDING[dtype] * TOLERANCE)


@each_device
def test_the_resident_forward(device: str) -> None:
    """bfloat16 products against their arithmetic in float64: hidden states are rounded after every step.

    Half of the losses are within 2e-5 nats a position, all within 1e-3, and nine tenths of the states within 2e-5:
    where a float32's last bit decides, a state is rounded to the other side. On a GPU, of heads of up to 64 units, and
    the token table is once too large for shared memory.
    """
    if "bfloat16" not in zo.backends.backend_for(device).precisions():
        pytest.skip("this processor or this build has no bfloat16 products")
    shapes = [Shape(11, 5, 2, 6, 3, 4), Shape(30, 16, 3, 15, 33, 8), Shape(100, 100, 12, 20, 50, 5)]
    if device != "cpu":
        shapes += [Shape(100, 100, 32, 50, 140, 4), Shape(3000, 20, 2, 64, 70, 20)]
    off = []
    for shape in shapes:
        model, batch, seeds = make_model("lstm", shape), make_batch(shape), make_seeds(4)
        with torch.no_grad():
            for weight in (model.recurrent_weight, model.output_weight):
                weight.clamp_(-0.9, 0.9)  # within what bfloat16 resolves at EPS
        model.input_weight.requires_grad_(shape.batch != 3)
        scored = int((batch[1] != IGNORE_INDEX).sum())
        there, fresh = copy.deepcopy(model).to(device), model.population_states(len(seeds), shape.batch)
        for states in ((), tuple(state.bfloat16().float() for state in make_states(model, len(seeds), shape.batch))):
            expected, last = emulated(model, *batch, seeds, states or fresh)
            carried = on(device, *states)
            nats = there.population_nats(*on(device, *batch), seeds, EPS, states=carried, precision="bfloat16")
            off.append(((nats.cpu() - expected).abs() / scored).flatten())
            for got, wanted in zip(carried, last, strict=bool(states)):
                near = (got.cpu().double() - wanted).abs() < 2e-5
                assert near.double().mean() > 0.9, f"{shape}: {int((~near).sum())} of {near.numel()} states are off"
    assert torch.cat(off).median() <= 2e-5
    assert torch.cat(off).max() <= 1e-3


@each_device
@each_cell
def test_the_streamed_forward(cell: str, device: str) -> None:
    """As the population kernel, but with a token table of float16: off by 1e-3 nats a position at most."""
    off = []
    for shape in (Shape(11, 5, 2, 20, 3, 4), Shape(100, 16, 3, 64, 130, 4), Shape(30, 16, 2, 150, 200, 3)):
        model, batch, seeds = make_model(cell, shape), make_batch(shape), make_seeds(3)
        scored, size = int((batch[1] != IGNORE_INDEX).sum()), shape.batch
        there, fresh = copy.deepcopy(model).to(device)._weights(), model.population_states(len(seeds), size)
        if (reason := streamed.refusal(there, size, there.bias.device)) is not None:
            pytest.skip(reason)
        for states in ((), tuple(state.bfloat16().float() for state in make_states(model, len(seeds), size))):
            expected, last = emulated(model, *batch, seeds, states or fresh)
            carried = on(device, *states)
            on_gpu = there.bias.is_cuda  # else interpreted
            queue = (there.bias.device.index, torch.cuda.current_stream().cuda_stream) if on_gpu else None
            nats = streamed.recurrent_nats(there, *on(device, *batch), seeds.numpy(), EPS, carried, queue)
            off.append(((nats - expected).abs() / scored).flatten())
            for got, wanted in zip(carried, last, strict=bool(states)):
                assert (got.cpu().double() - wanted).abs().max() < 2e-2  # a few roundings of bfloat16
    assert torch.cat(off).max() <= 1e-3


@each_device
@pytest.mark.parametrize("kind", ["lstm float32", "lstm bfloat16", "gru float32", "elman float32", "slstm float32"])
def test_flashrnn(kind: str, device: str) -> None:
    """Against vanilla on the CPU; compiled for the heads and probes of the models that bench.gpu measures."""
    skip_without_flashrnn()
    cell, precision = kind.split()
    probes, shape = (4, Shape(11, 5, 2, 20, 5, 3)) if device == "cpu" else (96, Shape(100, 100, 12, 20, 5, 3))
    model, batch, seeds, few = make_flash(cell, shape), make_batch(shape), make_seeds(probes), min(8, probes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-1, 1)  # within what bfloat16 resolves at EPS
    there, scored = copy.deepcopy(model).to(device), int((batch[1] != IGNORE_INDEX).sum())
    expected = model.population_nats(*batch, seeds[:few], EPS)  # vanilla loops in Python
    nats = there.population_nats(*on(device, *batch), seeds, EPS, precision=precision).cpu()
    assert nats.isfinite().all()
    allowed = 2 * TOLERANCE if precision == "float32" else 2e-3  # nats a position; bfloat16 rounds in every step
    torch.testing.assert_close(nats[:few], expected, rtol=0, atol=allowed * scored)
    assert torch.corrcoef(torch.stack([x.diff(dim=1).flatten() for x in (nats[:few], expected)]))[0, 1] >= 0.999
    if precision == "float32":
        with torch.no_grad(), without_tf32():
            assert_near(there.loss(*on(device, *batch)), model.loss(*batch), 2 * TOLERANCE)


def built(name: str, device: str) -> LanguageModel:
    memory = {"memory_slots": 6, "memory_width": 5} if has_memory(name) else {}
    sizes = {"embed_dim": TINY.embed, "hidden_size": 16, "num_heads": TINY.heads}
    return build_model(name, TINY.vocab, seed=0, **sizes, **memory).to(device)


@each_device
@pytest.mark.parametrize("name", ["dnc", "paper-dnc"])
def test_models_with_memory(name: str, device: str) -> None:
    batch, seeds = make_batch(TINY, ignored=0), torch.arange(3)
    here, there = built(name, "cpu"), built(name, device)
    with zo.backend(right_beside(device)):
        expected = here.population_loss(*batch, seeds, 2.0**-6)
    losses = there.population_loss(*on(device, *batch), seeds, 2.0**-6).cpu()
    assert (losses - expected).abs().max() <= 1e-4
    with torch.no_grad(), without_tf32():
        assert (there.loss(*on(device, *batch)).cpu() - here.loss(*batch)).abs() <= 1e-4


@each_device
@pytest.mark.parametrize("checkpoint_length", [None, 2])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_back_propagation(name: str, checkpoint_length: int | None, device: str) -> None:
    """A step of SGD moves each parameter as on the CPU without checkpoints, to 1e-3 of its largest move.

    FlashRNN compiles the sLSTM on a GPU, which takes a minute.
    """
    if name == "slstm":
        skip_without_flashrnn()

    def moves(device: str, length: int | None) -> dict[str, Tensor]:
        model = built(name, device)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        with without_tf32():
            BPTT(model, lr=1.0, checkpoint_length=length).step(*on(device, *make_batch(TINY, ignored=0)))
        return {key: (p.detach() - before[key]).cpu() for key, p in model.named_parameters()}

    expected = moves("cpu", None)
    for key, move in moves(device, checkpoint_length).items():
        scale = float(expected[key].abs().max()) or 1.0
        assert (move - expected[key]).abs().max() <= 1e-3 * scale, key
