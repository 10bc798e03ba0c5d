"""`import zo_kernels` is silent, `python -m zo_kernels` says what works here, a wrong ZO_KERNELS_ISA is an error."""

import json
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zo_kernels as zo
from zo_kernels import _C, environment
from zo_kernels.backends import BACKENDS, cpu

NONSENSE = "ZO_KERNELS_ISA asks for the instruction set 'sse9', which this build does not know; it has: " + ", ".join(
    _C.compiled_isas()
)


def start(*arguments, isa=None):
    """A Python process that finds the package where this one did."""
    variables = {**os.environ, "PYTHONPATH": str(Path(zo.__file__).parents[1])}
    variables.pop("ZO_KERNELS_ISA", None)
    if isa is not None:
        variables["ZO_KERNELS_ISA"] = isa
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def processes():
    """Started at once: each takes as long as `import torch`."""
    op = "import zo_kernels as zo; print('imported'); zo.ops.probe(5, 3); print('computed')"
    return {
        "import": start("-c", "import zo_kernels"),
        "config": start("-m", "zo_kernels", isa="sse9"),
        "json": start("-m", "zo_kernels", "--json", isa="sse9"),
        "op": start("-c", op, isa="sse9"),
    }


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def as_lines(text):
    """The printed configuration as a dict: a name, at least two spaces, a value."""
    pairs = [line.split("  ", 1) for line in text.splitlines()]
    return {name: value.strip() for name, value in pairs}


def test_import_prints_nothing(processes):
    assert finish(processes["import"]) == (0, "", "")


def test_config_with_a_wrong_isa(processes):
    code, out, err = finish(processes["config"])
    assert (code, err) == (0, "")
    lines = as_lines(out)
    assert lines["instruction set running"] == f"none: {NONSENSE}"
    assert lines["backend cpu"] == NONSENSE
    assert lines["backend reference"] == "works"


def test_op_with_a_wrong_isa(processes):
    """Nobody asked for the reference: it must not step in."""
    code, out, err = finish(processes["op"])
    assert out == "imported\n"
    assert code == 1
    assert NONSENSE in err


def run_main(monkeypatch, *arguments):
    """What `python -m zo_kernels` prints, in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["zo_kernels", *arguments])
    monkeypatch.delitem(sys.modules, "zo_kernels.__main__", raising=False)  # runpy warns of an imported one
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("zo_kernels", run_name="__main__")
    return ended.value.code


def test_python_m_zo_kernels(capsys, monkeypatch):
    assert run_main(monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = as_lines(printed.out)
    assert lines["zo_kernels"] == zo.__version__
    assert lines["Python"] == platform.python_version()
    assert lines["torch"] == f"{torch.__version__}, {torch.get_num_threads()} threads"
    assert lines["compiler"] == _C.compiler
    assert lines["instruction sets built"] == ", ".join(_C.compiled_isas())
    assert lines["instruction set running"].split(" (")[0] == _C.active_isa()
    assert lines["bfloat16 products"].split(":")[0] == ("yes" if _C.has_bfloat16() else "no")
    assert lines["OpenMP"] == "torch's"
    assert {"CUDA built", "CUDA device"} <= set(lines)
    for name in BACKENDS:
        assert lines[f"backend {name}"] == (BACKENDS[name].unavailable() or "works")


def test_json(capsys, monkeypatch):
    assert run_main(monkeypatch, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == environment.describe()
    assert (printed["zo_kernels"], printed["torch"]) == (zo.__version__, torch.__version__)
    assert printed["backends"] == {name: backend.unavailable() for name, backend in BACKENDS.items()}
    build = printed["build"]
    assert (build["isa"], build["isas"]) == (_C.active_isa(), list(_C.compiled_isas()))
    assert build["openmp"] is True


def test_json_with_a_wrong_isa(processes):
    code, out, err = finish(processes["json"])
    assert (code, err) == (0, "")
    build = json.loads(out)["build"]
    assert (build["isa"], build["isa_problem"], build["isa_forced_by"]) == (None, NONSENSE, "sse9")


def test_columns_line_up(capsys):
    zo.show_config()
    columns = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in capsys.readouterr().out.splitlines()}
    assert len(columns) == 1


def test_config_says_that_an_isa_is_forced(capsys, monkeypatch):
    monkeypatch.setenv("ZO_KERNELS_ISA", "baseline")  # read by this process at its first op, so now for the words only
    zo.show_config()
    assert as_lines(capsys.readouterr().out)["instruction set running"].endswith(" (forced by ZO_KERNELS_ISA)")


def test_config_without_the_compiled_module(capsys, monkeypatch):
    monkeypatch.setattr(environment, "_C", None)
    monkeypatch.setattr(cpu, "_C", None)
    monkeypatch.setattr(cpu, "_import_error", "no _C.so", raising=False)
    zo.show_config()
    assert environment.describe()["build"] is None
    lines = as_lines(capsys.readouterr().out)
    assert lines["compiled module"] == "missing; install the package with `pip install .`"
    assert "no _C.so" in lines["backend cpu"]
    assert lines["backend reference"] == "works"
