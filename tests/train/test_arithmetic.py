"""A run goes on with losses that are rounded as before, or says what has changed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.runs import SMALL
from zo_kernels import _C
from zo_kernels.backends import BACKENDS, backend, cpu
from zo_kernels.models import LSTM, MODEL_NAMES, LanguageModel, RecurrentLM, build_model
from zo_kernels.models.cells import MODELS
from zo_kernels.train import arithmetic
from zo_kernels.train.__main__ import main
from zo_kernels.train.arithmetic import arithmetic_of
from zo_kernels.train.defaults import default_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A run of 5 steps, on the backend cpu."""
    return shutil.copytree(whole, tmp_path / "run")


def entries_of(run: Path) -> list[tuple[int, dict[str, str]]]:
    return json.loads((run / "arithmetic.json").read_text())


def test_what_describes_it() -> None:
    config = default_config("copy", device="cpu")
    kernel = arithmetic_of(config)
    assert kernel["backend"] == "cpu"
    assert kernel["forward"].startswith("kernel ")
    with backend("reference"):
        assert arithmetic_of(config)["forward"] == f"torch {torch.__version__}"
    for change in ({"distribution": "normal"}, {"solver": "bptt"}, {"model": "slstm"}):
        assert arithmetic_of(default_config("copy", device="cpu", **change))["forward"].startswith("torch ")


def test_activity_perturbation_is_that_of_its_kernel() -> None:
    for local in (False, True):
        config = default_config("text", device="cpu", solver="activity", local_gradient=local)
        of_torch = f"torch {torch.__version__}"
        assert arithmetic_of(config)["forward"] == f"activity kernel 1, {of_torch}"
        assert arithmetic_of(config)["isa"] == _C.active_isa()
        with backend("reference"):
            assert arithmetic_of(config)["forward"] == of_torch


def test_an_instruction_set_may_have_a_version_of_its_own() -> None:
    forwards = {}
    try:
        for isa in _C.supported_isas():
            _C.set_isa(isa)
            forwards[isa] = arithmetic_of(default_config("copy", device="cpu"))["forward"]
    finally:
        _C.set_isa("")
    assert forwards["baseline"] == "kernel 1"
    assert forwards.get("avx2", "kernel 2") == "kernel 2"
    assert forwards.get("neon", "kernel 1") == "kernel 1"


def test_the_kernel_that_carries_states_is_part_of_it() -> None:
    def forward(**options: object) -> str:
        return arithmetic_of(default_config("text", device="cpu", stateful=True, **options))["forward"]

    assert forward() == arithmetic_of(default_config("text", device="cpu"))["forward"]
    for change in ({"distribution": "normal"}, {"solver": "bptt"}):
        assert re.fullmatch(rf"torch \S+, states of kernel \d+ on {_C.active_isa()}", forward(**change))
    assert forward(model="slstm") == f"torch {torch.__version__}"
    with backend("reference"):
        assert forward(solver="bptt") == f"torch {torch.__version__}"


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batched forward has a version, and so has a kernel, which is named where the model is known."""
    monkeypatch.setattr(arithmetic, "backend_for", BACKENDS.get)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(arithmetic, "fused_cell", lambda device, dtype: None)

    def forward(of: LanguageModel | None = None, **options: object) -> str:
        described = arithmetic_of(default_config("text", device="cuda", **options), of)
        assert described["isa"] == "sm_90"
        return described["forward"]

    in_torch = f"torch {torch.__version__}"
    assert forward() == forward(forward="batched") == f"{in_torch}, batched 2"
    assert forward(distribution="normal") == f"{in_torch}, no TF32"
    assert forward(solver="bptt") == in_torch
    assert forward(distribution="normal", stateful=True) == f"{in_torch}, batched 2, no TF32"
    assert forward(model="slstm") == in_torch
    assert forward(precision="bfloat16") == f"kernel 1, {in_torch}, batched 2"
    model = LSTM(5, 4, 8)
    monkeypatch.setattr(model, "forward_name", lambda batch_size, precision: "resident")
    assert forward(model, precision="bfloat16") == f"resident kernel 1, {in_torch}, batched 2"
    monkeypatch.setattr(arithmetic, "fused_cell", lambda device, dtype: print)
    assert forward(model) == f"{in_torch}, batched 2 with the fused cell"
    assert forward() == f"{in_torch}, batched 2"  # before a rank has its GPU


@pytest.mark.parametrize("model", ["dnc", "paper-dnc"])
def test_models_with_a_memory(model: str) -> None:
    """They have a kernel of their own, but torch carries their states. Older versions used torch alone."""
    sizes = {"model": model, "memory_slots": 5, "memory_width": 4, "device": "cpu"}
    described = arithmetic_of(default_config("text", **sizes))
    assert re.fullmatch(r"memory kernel \d+", described["forward"])
    assert described["isa"] == _C.active_isa()
    stateful = arithmetic_of(default_config("text", stateful=True, **sizes))
    assert stateful["forward"] == f"{described['forward']}, states of torch {torch.__version__}"
    for change in ({"distribution": "normal"}, {"solver": "bptt"}):
        assert arithmetic_of(default_config("text", **sizes, **change))["forward"] == f"torch {torch.__version__}"
    with backend("reference"):
        assert arithmetic_of(default_config("text", **sizes))["forward"] == f"torch {torch.__version__}"


def test_an_older_run_of_a_dnc_is_not_resumed_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = ["--model", "paper-dnc", "--memory-slots", "5", "--memory-width", "4", "--steps", "2"]
    run = tmp_path / "run"
    assert main([*SMALL, *memory, "--out", str(run)]) == 0
    path = run / "arithmetic.json"
    ((step, now),) = json.loads(path.read_text())
    path.write_text(json.dumps([[step, {**now, "forward": "torch 2.13.0"}]]))
    assert main(["--resume", str(run)]) == 2
    assert f"the forward pass was torch 2.13.0 and is {now['forward']} here" in capsys.readouterr().err
    path.unlink()  # as in a run of version 0.1
    assert main(["--resume", str(run)]) == 2
    assert f"the forward pass was torch and is {now['forward']} here" in capsys.readouterr().err
    assert main(["--resume", str(run), "--backend", "reference"]) == 0  # which evaluates it in torch, as before
    assert main(["--resume", str(run), "--allow-other-arithmetic"]) == 0


def test_the_models_with_a_kernel() -> None:
    sizes = {"embed_dim": 4, "hidden_size": 8, "num_heads": 2}
    for name in MODEL_NAMES:
        memory = {"memory_slots": 5, "memory_width": 4} if "dnc" in name else {}
        assert isinstance(build_model(name, 7, **sizes, **memory), RecurrentLM) == (name in MODELS)


def test_a_run_is_not_resumed_with_another_backend(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main(["--resume", str(run), "--backend", "reference"]) == 2
    said = capsys.readouterr().err
    assert "losses that are rounded differently, for the backend was cpu and is reference here" in said
    assert "or give --allow-other-arithmetic" in said
    assert said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert main(["--resume", str(run)]) == 0
    assert [step for step, _ in entries_of(run)] == [0]


def test_another_backend_is_recorded(run: Path) -> None:
    other = ["--resume", str(run), "--backend", "reference", "--allow-other-arithmetic"]
    assert main(other) == 0
    assert [(step, a["backend"]) for step, a in entries_of(run)] == [(0, "cpu"), (5, "reference")]
    assert main(["--resume", str(run), "--backend", "cpu"]) == 2  # its last steps were those of the other
    assert main(["--resume", str(run), "--backend", "reference"]) == 0
    assert main(["--fork", str(run), "--fork-step", "3", "--out", str(run.parent / "fork")]) == 0
    assert [(step, a["backend"]) for step, a in entries_of(run.parent / "fork")] == [(3, "cpu")]


def test_another_version_of_the_package_goes_on(run: Path) -> None:
    path = run / "arithmetic.json"
    path.write_text(path.read_text().replace('"zo_kernels": "', '"zo_kernels": "older-'))
    assert main(["--resume", str(run)]) == 0
    assert [step for step, _ in entries_of(run)] == [0, 5]


def test_a_run_without_a_record_goes_on_and_gets_one(run: Path) -> None:
    (run / "arithmetic.json").unlink()
    assert main(["--resume", str(run), "--backend", "reference"]) == 0
    assert [(step, a["backend"]) for step, a in entries_of(run)] == [(5, "reference")]


@pytest.mark.parametrize("content", ["{", "[[1]]", '[["0", {}]]', '[[0, {"isa": 3}]]', "{}"])
def test_a_damaged_record(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "arithmetic.json").write_text(content)
    assert main(["--resume", str(run)]) == 2
    assert "arithmetic.json" in capsys.readouterr().err
    assert (run / "arithmetic.json").read_text() == content


def test_a_run_is_not_resumed_with_another_instruction_set(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu._C is not None
    own = cpu._C.active_isa()
    cpu._C.set_isa(next(isa for isa in cpu._C.compiled_isas() if isa != own))
    other = cpu._C.active_isa()
    assert main(["--resume", str(run)]) == 2
    assert f"for the instruction set was {own} and is {other} here" in capsys.readouterr().err
    assert main(["--resume", str(run), "--threads", "1", "--allow-other-arithmetic"]) == 0
    assert [(step, a["isa"]) for step, a in entries_of(run)] == [(0, own), (5, other)]
