"""`python -m bench.gpu`, rehearsed on the CPU."""

import json
import subprocess
import sys

import pytest

from bench.gpu import __main__ as gpu
from bench.report import ROOT


@pytest.mark.slow
def test_a_rehearsal_and_the_rest_of_it(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--only", "ops", "--out", str(tmp_path)]
    for minutes in ("5", "0"):  # all is done by then
        run = subprocess.run([*command, "--minutes", minutes], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    written = json.loads((tmp_path / "cpu-rehearsal.json").read_text())
    assert [m["status"] for m in written["measures"].values()] == ["done"] * 5
    assert all(figure["figure"] > 0 for m in written["measures"].values() for figure in m["figures"])


@pytest.mark.parametrize("test", ["assert False", "import pytest; pytest.skip('no CUDA device')"])
def test_nothing_is_measured_unless_its_tests_pass(test, tmp_path, monkeypatch):
    (tmp_path / "test_it.py").write_text(f"def test_cpu():\n    {test}\n")
    monkeypatch.setitem(gpu.TESTS, "ops", (str(tmp_path / "test_it.py"), "{device}"))
    monkeypatch.setenv(gpu.VARIABLE, "0")
    assert gpu.main(["--device", "cpu", "--only", "ops", "--out", str(tmp_path)]) == 1
    assert not (tmp_path / "cpu-rehearsal.json").exists()
