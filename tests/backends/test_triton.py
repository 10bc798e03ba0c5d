"""The triton backend says what it lacks, and computes where it is asked to only."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zo_kernels as zo
from tests.recurrent import SMALL, TOLERANCE, make_batch, make_model, make_seeds
from zo_kernels.backends import BACKENDS, backend_for
from zo_kernels.backends import triton as triton_backend

CHANGED = "TRITON_INTERPRET was changed after zo_kernels or Triton was imported; set it before Python starts"


def run(code: str, interpret: str) -> str:
    """What a Python process prints that finds the package where this one did."""
    path = os.pathsep.join(filter(None, (str(Path(zo.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": path}
    process = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_where_the_compiled_module_is_missing_the_reference_computes():
    code = (
        "import sys; sys.modules['zo_kernels._C'] = None; import torch, zo_kernels as zo; "
        "print(zo.backends.backend_for('cpu').name)"
    )
    assert run(code, interpret="1") == "reference\n"


def test_importing_and_asking_does_not_import_triton():
    code = "import sys, zo_kernels as zo; zo.show_config(); print('triton' in sys.modules)"
    printed = run(code, interpret="0")
    assert "backend triton" in printed
    assert printed.splitlines()[-1] == "False"


@pytest.fixture
def anywhere(monkeypatch):
    """Neither a GPU nor the interpreter, whatever this machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton_backend, "_INTERPRETED", False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def assert_unavailable(reason: str) -> None:
    zo.set_backend("reference")
    for ask in (zo.set_backend, lambda name: zo.backend(name).__enter__()):
        with pytest.raises(RuntimeError) as error:
            ask("triton")
        assert str(error.value) == f"backend 'triton' can't be used: {reason}"
    assert backend_for("cpu").name == "reference"  # as before


def test_without_a_gpu(anywhere):
    assert_unavailable("torch finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES")


def test_without_triton(anywhere, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_unavailable("Triton is not installed; run `pip install triton`")


def test_interpreter_asked_for_too_late(anywhere, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert_unavailable(CHANGED)


@pytest.mark.slow
def test_triton_imported_before_the_interpreter_was_asked_for():
    code = (
        "import os, triton; os.environ['TRITON_INTERPRET'] = '1'; import zo_kernels as zo; "
        "print(zo.backends.BACKENDS['triton'].unavailable())"
    )
    assert run(code, interpret="0") == f"{CHANGED}\n"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="it computes on CPU tensors in the interpreter")
def test_does_not_compute_on_cpu_tensors(monkeypatch):
    monkeypatch.setattr(BACKENDS["triton"], "unavailable", lambda: None)
    with (
        zo.backend("triton"),
        pytest.raises(RuntimeError, match=r"^backend 'triton' does not compute on cpu tensors$"),
    ):
        zo.ops.probe(5, 3)


def test_recurrent_forwards(monkeypatch):
    """Nats and logits in torch and float32, nats from members that the backend's own apply_probes makes."""
    backend, reference = BACKENDS["triton"], BACKENDS["reference"]
    monkeypatch.setattr(backend, "apply_probes", reference.apply_probes)
    model, (tokens, targets) = make_model("gru"), make_batch()
    arguments = model._weights(), tokens, targets, make_seeds(2).numpy(), 0.25, (), "float32"
    nats, expected = backend.recurrent_nats(*arguments), reference.recurrent_nats(*arguments)
    assert bool(expected.all())
    assert (nats - expected).abs().max() <= TOLERANCE * targets.numel()
    states = [torch.zeros(2, len(tokens), SMALL.head_dim) for _ in range(2)]
    logits = [
        of.recurrent_logits(model._weights(), tokens, [state])
        for of, state in zip((backend, reference), states, strict=True)
    ]
    for actual, wanted in (logits, states):
        assert (actual - wanted).abs().max() <= TOLERANCE
    assert backend.fused_forward
    assert backend.precisions() == ("float32", "bfloat16")
