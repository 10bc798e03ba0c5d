"""`python -m bench.gpu`, rehearsed on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import models, plan, tests
from bench.report import ROOT


@pytest.fixture(autouse=True)
def same_variables(monkeypatch):
    for name in (*gpu.VARIABLES, *gpu.CACHES):
        monkeypatch.setenv(name, "0")  # and so put back what `main` changes


@pytest.mark.slow
def test_a_rehearsal_and_the_rest_of_it(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--only", "ops", "--out", str(tmp_path)]
    for minutes in ("5", "0"):  # all is done by then
        run = subprocess.run([*command, "--minutes", minutes], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    written = json.loads((tmp_path / "cpu-rehearsal.json").read_text())
    assert [m["status"] for m in written["measures"].values()] == ["done"] * 6
    assert all(figure["figure"] > 0 for m in written["measures"].values() for figure in m["figures"])
    assert "$ python -m pytest tests/gpu/test_ops.py -k" in (tmp_path / "cpu-rehearsal.tests.log").read_text()


@pytest.mark.parametrize(
    ("bodies", "seconds", "said"),
    [
        (("pass", "assert False"), 300.0, "failed: 1 failed in "),
        (("pytest.skip('no CUDA device')", "pass"), 300.0, "skipped: 1 skipped in "),
        (("pass", "pass"), 300.0, "passed: 1 passed in "),
        (("assert False",), 0.0, "out of time"),
    ],
)
def test_what_tests_say(bodies, seconds, said, tmp_path, monkeypatch):
    """One process that fails makes the group fail, and one that is stopped leaves open what it is."""
    for k, body in enumerate(bodies):
        (tmp_path / f"test_{k}.py").write_text(f"import pytest\n\n\ndef test_cpu():\n    {body}\n")
    parts = tuple((str(tmp_path / f"test_{k}.py"), "{device}") for k in range(len(bodies)))
    monkeypatch.setitem(plan.TESTS, "ops", plan.Tests(1, parts, 1.0))
    found = tests.run(["ops"], "cpu", seconds, tmp_path / "log")
    assert found["ops"].startswith(said)
    assert (tmp_path / "log").read_text().count("$ python -m pytest") == len(bodies)


def test_nothing_is_measured_unless_its_tests_pass(tmp_path, monkeypatch, capsys):
    said = {"ops": "skipped: 3 skipped in 1 s"}
    monkeypatch.setattr(tests, "run", lambda groups, device, seconds, log: said)
    for _ in range(2):  # the verdict is kept
        assert gpu.main(["--device", "cpu", "--only", "ops", "--out", str(tmp_path)]) == 1
        assert capsys.readouterr().out.count("not measured: tests skipped: 3 skipped in 1 s") == 6
        said["ops"] = "passed: 3 passed"
    written = json.loads((tmp_path / "cpu-rehearsal.json").read_text())
    assert (written["tests"], written["measures"]) == ({"ops": "skipped: 3 skipped in 1 s"}, {})


def test_tests_that_were_stopped_run_again(tmp_path, monkeypatch, capsys):
    said = {"ops": tests.OUT_OF_TIME}
    monkeypatch.setattr(tests, "run", lambda groups, device, seconds, log: said)
    monkeypatch.setattr(gpu, "do", lambda m, device, seconds: {"status": "done", "figures": []})
    assert gpu.main(["--device", "cpu", "--only", "ops", "--out", str(tmp_path)]) == 1
    assert "tests failed" not in capsys.readouterr().out
    said["ops"] = "passed: 3 passed"
    assert gpu.main(["--device", "cpu", "--only", "ops", "--out", str(tmp_path)]) == 0


def test_a_refusal_is_no_error_and_no_figure(monkeypatch):
    def refuse(device):
        raise models.Refused("the head size is odd")
        yield

    found = gpu.do(plan.Measure("bfloat16", refuse), "cpu", 100.0)
    assert (found["status"], found["figures"]) == ("refused: the head size is odd", [])


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (RuntimeError("use precision='float32'"), True),
        (ValueError("a size does not fit"), True),
        (RuntimeError("population: an illegal memory access was encountered"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_what_counts_as_a_refusal(error, refused):
    class Model:
        def population(self, *batch, precision):
            return self

        def population_loss(self, seeds, eps):
            raise error

    with pytest.raises(models.Refused if refused else type(error)):
        models._population(Model(), (), "bfloat16")


def test_the_most_valuable_comes_first():
    names = [m.name for m in plan.plan("cuda")]
    sizes = ["100k", "1M", "10M", "1.1B", "100M"]
    assert names[:5] == [f"bfloat16 step bfloat16 {size}" for size in sizes]
    assert {f"float32 step float32 {size}" for size in sizes} == set(names[5:10])
    assert {m.group for m in plan.plan("cuda")} == set(plan.TESTS)


def test_two_calls_do_everything(tmp_path, monkeypatch):
    """If all takes what it is estimated to take; on a clock of its own."""
    assert plan.total_seconds("cuda") <= plan.CALLS * 60 * plan.MINUTES
    now = [0.0]

    def run(groups, device, seconds, log):
        needed = max(plan.TESTS[group].seconds for group in groups)
        if seconds < needed:
            return dict.fromkeys(groups, tests.OUT_OF_TIME)
        now[0] += needed
        return dict.fromkeys(groups, "passed: all")

    def do(m, device, seconds):
        assert seconds >= m.seconds
        now[0] += m.seconds
        return {"status": "done", "figures": []}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tests, "run", run)
    monkeypatch.setattr(gpu, "do", do)
    for call in range(plan.CALLS):
        began = now[0]
        spent = plan.STARTUP + (plan.BUILD if call == 0 else 0.0)
        code = gpu.main(["--out", str(tmp_path), "--minutes", str(plan.MINUTES - spent / 60)])
        assert now[0] - began + spent <= 60 * plan.MINUTES
        measured = json.loads((tmp_path / "nvidia-h200.json").read_text())["measures"]
        assert {m.name for m in plan.plan("cuda")[:10]} <= set(measured)  # Table 1, in the first call
    assert code == 0


def test_the_script_names_what_there_is():
    script = (Path(gpu.__file__).parent / "lease.sh").read_text()
    assert "from bench.gpu.plan import MINUTES" in script
    run = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert run.returncode == 0
