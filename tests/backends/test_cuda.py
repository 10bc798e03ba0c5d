"""The cuda backend as far as a machine without a GPU can tell: what it says, and what it hands to the kernels.

The kernels themselves are tested in tests/csrc/test_cuda.cpp.
"""

import logging
import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import zo_kernels as zo
from tests.backends.kernels_on_the_cpu import KernelsOnTheCpu
from tests.backends.list_checks import CHECKS
from tests.backends.op_checks import Place
from tests.cases import DISTRIBUTIONS, FEW_CASES, SEEDS, assert_same_bits, make_values
from tests.recurrent import SMALL, TOLERANCE, Shape, make_batch, make_model, make_seeds, make_states
from zo_kernels import _C, backends
from zo_kernels.backends import BACKENDS, cpu, cuda, gpu
from zo_kernels.backends.base import Update
from zo_kernels.backends.pieces import Pieces
from zo_kernels.backends.recurrent import choice, resident
from zo_kernels.ops.lists import accumulate_probes_list, apply_probe_list, swap_probe_list

CALLS = {
    "cuda_probe": (256, 0, 10, 3, 0, 0, 0),
    "cuda_apply_probe": (256, 0, 256, 0, 10, 1.0, 3, 0, 0, 0),
    "cuda_apply_probes": (256, 0, 512, 0, 10, 1024, 2048, 1, 0, 0, 0),
    "cuda_swap_probe": (256, 0, 10, 1.0, 3, 1.0, 4, 0, 0, 0),
    "cuda_accumulate_probes": (256, 0, 10, 1024, 1, 0, 0, 0.0, 0, 1.0, 0.0, None, 0, 0),
}
NORMAL = (1, 0)  # a stream and a sparsity
CALLS_FROM = {
    "cuda_probe_from": (*NORMAL, 256, 0, 10, 3, 0, 0, 0),
    "cuda_apply_probe_from": (*NORMAL, 256, 0, 256, 0, 10, 1.0, 3, 0, 0, 0),
    "cuda_accumulate_probes_from": (*NORMAL, 256, 0, 10, 1024, 1, 1.0, 0, 0.0, 0, 1.0, 0.0, None, 0, 0),
}

LIST_CALLS = {
    "cuda_apply_probe_list": (256, 0, 256, 0, 10, 12, 1.0, 3, 0, 0),
    "cuda_swap_probe_list": (256, 0, 10, 12, 1.0, 3, 1.0, 4, 0, 0),
    "cuda_accumulate_probes_list": (256, 0, 10, 12, 1024, 1, 0, 0.0, 0, 1.0, 0.0, None, 0, 0),
}
LIST_CALLS_FROM = {
    "cuda_apply_probe_list_from": (*NORMAL, 256, 0, 256, 0, 10, 12, 1.0, 3, 0, 0),
    "cuda_accumulate_probes_list_from": (*NORMAL, 256, 0, 10, 12, 1024, 1, 1.0, 0.0, 0, 1.0, 0.0, None, 0, 0),
}
ALL_CALLS = CALLS | CALLS_FROM | LIST_CALLS | LIST_CALLS_FROM

START = r"^no kernel of backend 'cuda' computes this model with bfloat16 products \(resident: it computes "

RESIDENT = ([(256, -1)] * 6, (5, 3, 1, 2, 5), 256, 256, 256, 2, 1, 1, 256, 1, 0.5, 0, 0, 256, 256, 0, 0)


@pytest.fixture
def kernels(monkeypatch):
    """The cuda backend over these, at home on CPU tensors."""
    stand_in = KernelsOnTheCpu()
    monkeypatch.setattr(cpu, "_C", stand_in)
    for module in (cuda, gpu):
        monkeypatch.setattr(module, "queue_of", lambda x: (1, 77))
    monkeypatch.setattr(cuda.CudaBackend, "device_types", ("cpu",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return stand_in


def all_ops(x, offset):
    rows = [0.5, -0.25, 1e-3], [seed % 2**64 for seed in SEEDS[:3]]
    options = {"decay": 0.9, "grid": 2.0**-12, "undo_alpha": -0.25, "undo_seed": SEEDS[3]}
    yield zo.ops.apply_probe_(x.clone(), 0.3, SEEDS[1], offset=offset)
    yield zo.ops.apply_probe(x, -0.3, SEEDS[2], offset=offset, dtype=torch.bfloat16)
    yield zo.ops.apply_probes(x, 0.3, SEEDS, offset=offset, dtype=torch.float16)
    yield zo.ops.swap_probe_(x.clone(), 0.3, SEEDS[1], 0.5, SEEDS[2], offset=offset)
    yield zo.ops.accumulate_probes_(x.clone(), *rows, offset=offset, **options)
    yield zo.ops.accumulate_probes_(x.clone(), [], [], offset=offset)
    yield zo.ops.probe(x.numel(), SEEDS[4], offset=offset, dtype=x.dtype)


@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_hands_over_what_the_kernels_need(case, kernels):
    x = make_values(case.numel, case.dtype)
    before = x.clone()
    with zo.backend("reference"):
        expected = list(all_ops(x, case.offset))
    with zo.backend("cuda"):
        for actual, wanted in zip(all_ops(x, case.offset), expected, strict=True):
            assert_same_bits(actual, wanted)
    assert set(kernels.queues) == {(1, 77)}
    assert len(kernels.queues) == len(expected)
    assert_same_bits(x, before)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_hands_over_distributions(distribution, kernels):
    """One launch each."""
    x, seeds, update = make_values(300, torch.bfloat16), np.array([3, -4]), Update(0.5, 7, 0.9, 2.0**-10, -9)
    coeffs = np.array([0.5, -0.25]) if distribution in ("normal", "uniform") else np.array([3, -5], np.int32)
    results = []
    for backend in (BACKENDS["cuda"], BACKENDS["reference"]):
        made, moved, summed = torch.empty_like(x), torch.empty_like(x, dtype=torch.float64), x.clone()
        backend.probe(made, -7, 128, distribution)
        backend.apply_probe(x, moved, 0.3, -7, 128, distribution)
        backend.accumulate_probes(summed, coeffs, 2, seeds, 128, update, distribution)
        results.append((made, moved, summed))
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)
    assert kernels.queues == [(1, 77)] * 3


class TestResidentForward:
    """bfloat16 on the GPU, where nothing else computes it: what the kernels make of it (here, that of the CPU)."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch):
        monkeypatch.setattr(choice, "_CANDIDATES", choice._CANDIDATES[:1])

    def nats(self, cell="lstm", precision="bfloat16", dtype=torch.float32, states=(), shape=SMALL):
        model, (tokens, targets) = make_model(cell, shape, dtype), make_batch(shape)
        with zo.backend("cuda"), torch.no_grad():
            for weight in (model.recurrent_weight, model.output_weight):
                weight.clamp_(-1, 1)
            return model.population_nats(tokens, targets, make_seeds(5), 2**-6, states=states, precision=precision)

    @pytest.mark.parametrize("chunk", [None, 2])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_losses_and_states(self, kernels, monkeypatch, chunk, dtype):
        if chunk:
            monkeypatch.setattr(resident, "_SCRATCH", chunk * (1024 + SMALL.time * 256))
        model = make_model("lstm")
        states, expected_states = (make_states(model, 5, SMALL.batch) for _ in range(2))
        nats = self.nats(dtype=dtype, states=states)
        expected = self.nats(precision="float32", dtype=dtype, states=expected_states)
        assert (nats - expected).abs().max() < TOLERANCE * SMALL.batch * SMALL.time
        for state, wanted in zip(states, expected_states, strict=True):
            assert (state - wanted).abs().max() < TOLERANCE
        assert kernels.queues.count((1, 77)) >= (3 if chunk else 1)
        assert kernels.steps_at_once == [SMALL.time]

    @pytest.mark.parametrize("shape", [Shape(11, 5, 2, 6, 3, 40), Shape(2000, 5, 2, 6, 3, 4)], ids=str)
    def test_long_contexts_and_large_vocabularies(self, kernels, monkeypatch, shape):
        """Hidden states are kept for some of the steps, with states that nobody gave. Tokens that occur have rows."""
        states = 2 * 4 * 2 * shape.heads * shape.batch * shape.head_dim
        monkeypatch.setattr(resident, "_SCRATCH", 5 * (1024 + 20 * 256 + states))
        expected = self.nats(precision="float32", shape=shape)
        assert (self.nats(shape=shape) - expected).abs().max() < TOLERANCE * shape.batch * shape.time
        assert kernels.steps_at_once == [min(20, shape.time)]

    def test_what_it_refuses(self, kernels, monkeypatch):
        with pytest.raises(RuntimeError, match=START + r"LSTMs of up to 32 bits, not gru of torch.float32\): use "):
            self.nats(cell="gru")
        with pytest.raises(RuntimeError, match=r"not lstm of torch.float64\): use precision='float32'$"):
            self.nats(dtype=torch.float64)
        with pytest.raises(RuntimeError, match=START + r"a single layer without layer norm\): use"):
            self.nats(shape=SMALL._replace(layers=2))
        with pytest.raises(RuntimeError, match=START + r"heads of up to 64 units, not 65\): use"):
            self.nats(shape=SMALL._replace(head_dim=65))
        with pytest.raises(RuntimeError, match=START + r"embeddings of up to 8000 numbers on this GPU, not 8001\)"):
            self.nats(shape=SMALL._replace(embed=8001))
        assert not kernels.steps_at_once

    def test_refuses_before_the_first_step(self, kernels, monkeypatch):
        model, batch = make_model("gru"), make_batch()
        with zo.backend("cuda"):
            assert make_model("lstm").forward_name(3, "bfloat16") == "resident"
            assert model.forward_name(3) == "batched"
            with pytest.raises(RuntimeError, match=r"not gru of torch\.float32"):
                model.population(*batch, precision="bfloat16")
        assert not kernels.queues


@pytest.mark.parametrize(
    ("probes", "steps", "expected"),
    [
        (96, 10, (32, 10)),  # 33 have room: three calls of equal size
        (5, 10, (5, 10)),
        (96, 1000, (24, 19)),  # 26 have room for 16 steps
        (2, 1000, (2, 397)),
        (1, 10**6, (1, 810)),
        (10**6, 1, (51, 1)),
    ],
)
def test_chunks_of_the_resident_forward(probes, steps, expected):
    assert resident.chunks(probes, steps, 30, 2, 1650) == expected
    assert resident.chunks(probes, steps, 10**9, 10**9, 1000) == (1, 1)
    assert resident.chunks(probes, steps, 0, 1, 10**18) == (min(probes, 62500), steps)


@pytest.mark.parametrize("name", CHECKS)
def test_lists(name, kernels):
    CHECKS[name](Place("cuda", "cpu", thorough=True))


def test_a_list_takes_one_call_and_one_table(kernels):
    x = Pieces([torch.zeros(n) for n in (5000, 0, 3)], [0, 5120, 5120])
    with zo.backend("cuda"):
        apply_probe_list(x, x, 0.5, 3, "rademacher")
        table = x.device_table
        swap_probe_list(x, -0.5, 3, 0.25, 4)
        accumulate_probes_list(x, torch.ones(1).double(), torch.ones(1).long(), "rademacher")
        apply_probe_list(x, x, 0.5, 3, "normal")
        accumulate_probes_list(x, torch.ones(1).double(), torch.ones(1).long(), "sparse-4")
    assert kernels.queues == [(1, 77)] * 5
    assert table is x.device_table
    assert table.rows[:, 0].tolist() == [t.data_ptr() for t in x.tensors]
    assert table.rows[:, 1:].tolist() == [[5000, 0, 0], [0, 40, 2], [3, 40, 2]]
    assert table.num_tiles == 3


def test_lists_that_differ_are_refused(kernels):
    x = Pieces([torch.zeros(5), torch.zeros(6)], [0, 128])
    with zo.backend("cuda"):
        for sizes, offsets in (((5, 7), (0, 128)), ((5, 6), (0, 256)), ((5,), (0,))):
            out = Pieces([torch.zeros(n) for n in sizes], offsets)
            with pytest.raises(ValueError, match=r"^the pieces of x and out differ in size or offset$"):
                apply_probe_list(x, out, 0.5, 3, "rademacher")
    assert not kernels.queues


def test_the_first_use_of_a_list_is_not_captured(monkeypatch):
    class OnGpu:
        device, device_table = torch.device("cuda"), None

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"^a CUDA graph can't capture the first use of a list of tensors; use the "):
        gpu.table_of(OnGpu())
    assert OnGpu.device_table is None


def test_the_queue_is_torchs_current_stream(monkeypatch):
    class Stream:
        cuda_stream = 1234

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream() if device.index == 3 else None)

    class X:
        device = torch.device("cuda", 3)

    assert gpu.queue_of(X()) == (3, 1234)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"^backend 'cuda' can't be used: ") as info:
        zo.set_backend("cuda")
    expected = (
        "without a working nvcc of CUDA 11.8 or newer"
        if not _C.cuda_build()
        else "this torch was built without CUDA|finds no CUDA device"
    )
    assert info.match(expected)
    assert zo.ops.probe(5, 3).shape == (5,)


@pytest.mark.parametrize("missing", ["the module", "nvcc", "torch's CUDA", "a device", "its use", "a driver"])
def test_each_thing_that_can_be_missing(missing, kernels, monkeypatch):
    backend = BACKENDS["cuda"]
    assert backend.unavailable() is None
    if missing == "the module":
        monkeypatch.setattr(cpu, "_C", None)
        monkeypatch.setattr(cpu, "_import_error", "gone", raising=False)
    elif missing == "nvcc":
        monkeypatch.setattr(kernels, "cuda_build", lambda: "")
    elif missing == "torch's CUDA":
        monkeypatch.setattr(torch.version, "cuda", None)
    elif missing == "a device":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elif missing == "its use":
        error = RuntimeError("Cannot re-initialize CUDA in forked subprocess\nsee")
        monkeypatch.setattr(torch.cuda, "current_device", Mock(side_effect=error))
    else:
        kernels.problem = "the NVIDIA driver is older than CUDA 13.0"
    reasons = {
        "the module": r"its compiled module is missing \(gone\); install the package with `pip install .`",
        "nvcc": "it was not built: zo_kernels was installed without a working nvcc of CUDA 11.8 or newer",
        "torch's CUDA": "this torch was built without CUDA; install a CUDA build of torch",
        "a device": "torch finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES",
        "its use": r"torch can't use its CUDA device \(Cannot re-initialize CUDA in forked subprocess\)",
        "a driver": "the NVIDIA driver is older than CUDA 13.0",
    }
    with pytest.raises(RuntimeError, match=f"^backend 'cuda' can't be used: {reasons[missing]}$"):
        zo.set_backend("cuda")


def test_triton_takes_over_where_the_kernels_do_not_run(kernels, monkeypatch, caplog):
    kernels.problem = "Tesla T4 has compute capability 7.5, and the kernels need 8.0 or newer"
    monkeypatch.setattr(backends, "_automatic", {})
    monkeypatch.setattr(cuda.CudaBackend, "device_types", ("cuda",))
    monkeypatch.setattr(BACKENDS["triton"], "unavailable", lambda: None)
    with caplog.at_level(logging.INFO, "zo_kernels"):
        assert backends.backend_for("cuda").name == "triton"
    (record,) = caplog.records
    assert record.getMessage() == f"cuda tensors: backend triton; cuda can't be used: {kernels.problem}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ALL_CALLS)
def test_a_kernel_without_a_device_raises_and_nothing_crashes(name):
    expected = "^no CUDA device: " if _C.cuda_build() else "^built without CUDA: no nvcc from CUDA 11.8 on was used"
    with pytest.raises(RuntimeError, match=expected):
        getattr(_C, name)(*ALL_CALLS[name])


@pytest.mark.parametrize("name", ALL_CALLS)
def test_arguments_that_no_kernel_survives(name):
    call, arguments = getattr(_C, name), ALL_CALLS[name]
    drawn = name in CALLS_FROM | LIST_CALLS_FROM
    first = len(NORMAL) if drawn else 0
    for at, wrong, message in (
        (first, 0, "null address"),
        (first + 1, 9, "dtype code 9"),
        (-2, -1, "device is negative"),
        *(((0, 3, "no distribution has stream 3"), (1, 17, r"sparsity is not in 0\.\.16")) if drawn else ()),
    ):
        changed = list(arguments)
        changed[at] = wrong
        with pytest.raises(ValueError, match=message):
            call(*changed)
    changed = [-1 if value == 10 else value for value in arguments]
    is_list = name in LIST_CALLS | LIST_CALLS_FROM
    with pytest.raises(ValueError, match="this is not a list of pieces" if is_list else "numel is negative"):
        call(*changed)


@pytest.mark.skipif(not _C.cuda_build() or torch.cuda.is_available(), reason="no CUDA kernels, or a GPU")
def test_what_the_module_says_of_no_driver():
    """Without one it says what it says of one that is too old."""
    old = r"the NVIDIA driver is older than CUDA \d+\.\d, which zo_kernels was built with: update the driver, or build"
    assert re.match(rf"{old}|its kernels can't be loaded \(", _C.cuda_problem(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_population_without_a_device():
    expected = "^no CUDA device: " if _C.cuda_build() else "^built without CUDA: no nvcc from CUDA 11.8 on was used"
    with pytest.raises(RuntimeError, match=expected):
        _C.cuda_resident(*RESIDENT)
    with pytest.raises(RuntimeError, match=expected):
        _C.cuda_resident_embed_dim(0)


@pytest.mark.parametrize(
    ("at", "wrong", "message"),
    [
        (0, [(0, -1)] * 6, "null address"),
        (0, [(256, 64)] * 6, "offset 64 is not a multiple of 128"),
        (1, (5, 3, 0, 2, 5), r"a size is not in \[1, 2\^31\)"),
        (2, 0, "null address"),
        (4, 0, "null address"),
        (5, 0, "a size is not in"),
        (6, 0, r"the number of positions is not in \[1, 2\^31\)"),
        (6, 2**30, "the number of positions is not in"),
        (7, 2, r"steps_at_once is not in \[1, num_steps\]"),
        (8, 0, "no seeds at this address"),
        (11, 256, "null address"),
        (13, 0, "null address"),
        (14, 0, "null address"),
        (15, -1, "device is negative"),
    ],
)
def test_population_arguments_that_no_kernel_survives(at, wrong, message):
    arguments = list(RESIDENT)
    arguments[at] = wrong
    with pytest.raises(ValueError, match=message):
        _C.cuda_resident(*arguments)
