"""zo_kernels._C itself: what it refuses (it is given bare addresses), instruction sets, threads, and the fold."""

import ctypes
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.cases import EDGE, engines
from zo_kernels import _C, philox

F32 = 0
X = torch.zeros(10)
AT = X.data_ptr()
Q, ROWS = np.array([5], np.int32), np.array([3], np.int64)
TABLE = (Q.ctypes.data, ROWS.ctypes.data, 1)


ONES = torch.ones(64)  # the parameters of a model of one of everything but two tokens
TOKENS, BELOW, ABOVE = (torch.tensor([token]) for token in (0, -1, 2))
NATS = torch.zeros(8, dtype=torch.float64)


def evaluate(**changes):
    """One step of a population of one probe, with changes to what the module is given."""
    weights, tokens, seeds = ONES.data_ptr(), TOKENS.data_ptr(), ROWS.ctypes.data
    parameters = [(weights, 0)] * 6 + [(0, -1)] * 5
    arguments = {"cell": 0, "dtype": F32, "parameters": parameters, "sizes": [2, 1, 1, 1, 1], "residual": False}
    arguments |= {
        "tokens": tokens,
        "targets": tokens,
        "batch_size": 1,
        "num_steps": 1,
        "seeds": seeds,
        "num_seeds": 1,
        "num_signs": 2,
    }
    arguments |= {"eps": 0.5, "bfloat16": False, "h": 0, "c": 0, "nats": NATS.data_ptr(), "correct": 0, "logits": 0}
    assert changes.keys() <= arguments.keys()
    _C.evaluate_population(*(arguments | changes).values())


def accumulate(address=AT, dtype=F32, numel=10, table=TABLE, offset=0, grid=0.0):
    _C.accumulate_probes(address, dtype, numel, *table, 0, offset, 0.0, 0, 1.0, grid, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _C.probe(AT, 4, 10, 3, 0), r"^dtype code 4 is not in 0\.\.3$"),
        (lambda: _C.probe(AT, -1, 10, 3, 0), "^dtype code -1"),
        (lambda: _C.probe(AT, F32, -1, 3, 0), "^numel is negative$"),
        (lambda: _C.probe(0, F32, 10, 3, 0), "^null address$"),
        (lambda: _C.probe(AT, F32, 10, 3, 5), r"^offset 5 is not a multiple of 128 in \[0, 2\^63\)$"),
        (lambda: _C.probe(AT, F32, 10, 3, -128), "^offset -128 is not"),
        (lambda: _C.probe(AT, F32, 128, 3, 2**63 - 128), r"^offset \+ numel passes 2\^63$"),
        (lambda: _C.apply_probe(0, F32, AT, F32, 10, 1.0, 3, 0), "^null address$"),
        (lambda: _C.apply_probe(AT, F32, 0, F32, 10, 1.0, 3, 0), "^null address$"),
        (lambda: _C.apply_probe(AT, 7, AT, F32, 10, 1.0, 3, 0), "^dtype code 7"),
        (lambda: _C.apply_probe(AT, F32, AT, 8, 10, 1.0, 3, 0), "^dtype code 8"),
        (lambda: _C.swap_probe(AT, 9, 10, 1.0, 3, 1.0, 4, 0), "^dtype code 9"),
        (lambda: _C.swap_probe(AT, F32, 10, 1.0, 3, 1.0, 4, 1), "^offset 1 is not"),
        (lambda: accumulate(dtype=4), "^dtype code 4"),
        (lambda: accumulate(numel=-10), "^numel is negative$"),
        (lambda: accumulate(address=0), "^null address$"),
        (lambda: accumulate(offset=64), "^offset 64 is not"),
        (lambda: accumulate(table=(TABLE[0], TABLE[1], -1)), "^no seeds at this address$"),
        (lambda: accumulate(table=(0, TABLE[1], 1)), "^no seeds at this address$"),
        (lambda: accumulate(table=(TABLE[0], 0, 1)), "^no seeds at this address$"),
        (lambda: accumulate(grid=3.0), "^grid is not a power of two$"),
        (lambda: accumulate(grid=-2.0), "^grid is not a power of two$"),
        (lambda: accumulate(grid=float("nan")), "^grid is not a power of two$"),
        (lambda: accumulate(grid=float("inf")), "^grid is not a power of two$"),
        (lambda: _C.fold_probes(10, 0, 1, 0), "^no seeds at this address$"),
        (lambda: _C.fold_probes(-1, 0, 0, 0), "^numel is negative$"),
        (lambda: evaluate(cell=3), r"^cell code 3 is not in 0\.\.2$"),
        (lambda: evaluate(cell=-1), "^cell code -1"),
        (lambda: evaluate(dtype=4), "^dtype code 4"),
        (lambda: evaluate(dtype=1), "^the population forward computes in float32$"),
        (lambda: evaluate(num_signs=3), "^num_signs is neither 1 nor 2$"),
        (lambda: evaluate(num_signs=0), "^num_signs is neither 1 nor 2$"),
        *(
            (lambda sizes=sizes: evaluate(sizes=sizes), "^a size is below 1$")
            for sizes in (1 - np.eye(5, dtype=int)).tolist()
        ),
        (lambda: evaluate(batch_size=0), "^a size is below 1$"),
        (lambda: evaluate(num_steps=-1), "^a size is below 1$"),
        (lambda: evaluate(num_seeds=-1), "^no seeds at this address$"),
        (lambda: evaluate(seeds=0), "^no seeds at this address$"),
        (lambda: evaluate(tokens=0), "^null address$"),
        (lambda: evaluate(nats=0), "^null address$"),
        (lambda: evaluate(parameters=[(ONES.data_ptr(), 0)] * 5 + [(0, 0)] * 6), "^null address$"),
        (lambda: evaluate(sizes=[2, 1, 2, 1, 1]), "^null address$"),
        (
            lambda: evaluate(parameters=[(ONES.data_ptr(), 0)] * 6 + [(0, -1)] * 3 + [(ONES.data_ptr(), 0), (0, 0)]),
            "null",
        ),
        (lambda: evaluate(tokens=ABOVE.data_ptr()), r"^a token is not in \[0, V\)$"),
        (lambda: evaluate(tokens=BELOW.data_ptr()), r"^a token is not in \[0, V\)$"),
        (lambda: evaluate(targets=ABOVE.data_ptr()), r"^a target is not in \[0, V\)$"),
    ],
)
def test_refuses_what_a_kernel_would_not_survive(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert not X.any()
    assert not NATS.any()


def test_a_population_of_no_probes_needs_no_memory():
    evaluate(num_seeds=0, seeds=0)
    assert not NATS.any()
    evaluate()
    assert NATS[:2].all()
    assert not NATS[2:].any()
    NATS.zero_()


def test_an_empty_range_needs_no_memory():
    _C.probe(0, F32, 0, 3, 0)
    _C.apply_probe(0, F32, 0, F32, 0, 1.0, 3, 0)
    _C.swap_probe(0, F32, 0, 1.0, 3, 1.0, 4, 0)
    accumulate(address=0, numel=0)
    accumulate(address=0, numel=0, table=(0, 0, 0))
    assert _C.fold_probes(0, TABLE[1], 1, 0) == 0


@pytest.mark.parametrize(("numel", "offset"), [(1, 0), (1000, 128), (5000, EDGE - 2048), (200001, EDGE - 1408)])
def test_fold_is_the_xor_of_all_words(numel, offset):
    """Of the blocks touched; words of odd blocks in the high half."""
    seeds = np.array([3, -4, 2**62], np.int64)
    expected = 0
    for seed in seeds.tolist():
        bits = philox.probe_bits(-(-numel // 128) * 128, seed, offset)
        words = np.packbits(bits, bitorder="little").view("<u4").reshape(-1, 4)
        halves = [int(np.bitwise_xor.reduce(words[parity::2], axis=None)) for parity in (0, 1)]
        low, high = halves if offset // 128 % 2 == 0 else halves[::-1]
        expected ^= low | high << 32
    for engine in engines(numel):
        assert _C.fold_probes(numel, seeds.ctypes.data, len(seeds), offset) == expected, engine
    assert _C.fold_probes(numel, 0, 0, offset) == 0


def test_instruction_sets():
    supported, compiled = _C.supported_isas(), _C.compiled_isas()
    assert supported[0] == compiled[0] == "baseline"
    assert set(supported) <= set(compiled)
    automatic = _C.active_isa()
    assert automatic == (os.environ.get("ZO_KERNELS_ISA") or supported[-1])
    for isa in supported:
        _C.set_isa(isa)
        assert _C.active_isa() == isa
        with pytest.raises(
            RuntimeError, match="set_isa asks for the instruction set 'sse9', which this build does not"
        ):
            _C.set_isa("sse9")
        assert _C.active_isa() == isa
    _C.set_isa("")
    assert _C.active_isa() == automatic
    for isa in set(compiled) - set(supported):
        with pytest.raises(RuntimeError, match=f"instruction set {isa}, which this processor lacks"):
            _C.set_isa(isa)


def test_runs_on_the_threads_of_torch():
    assert _C.has_openmp()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert _C.max_threads() == threads


def run_without_torch(isa, code):
    """Runs code in a process that loads the module alone: no torch, so no OpenMP runtime either."""
    load = (
        f"import importlib.util as u, ctypes; s = u.spec_from_file_location('zo_kernels._C', {_C.__file__!r}); "
        "_C = u.module_from_spec(s); s.loader.exec_module(_C); "
    )
    command, environment = [sys.executable, "-c", load + code], {**os.environ, "ZO_KERNELS_ISA": isa}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", ["", *_C.supported_isas()])
def test_environment_forces_an_instruction_set(isa):
    seeds = (ctypes.c_uint64 * 2)(3, 2**63)
    code = (
        "seeds = (ctypes.c_uint64 * 2)(3, 2**63); "
        "print(_C.active_isa(), _C.has_openmp(), _C.fold_probes(300000, ctypes.addressof(seeds), 2, 128)); "
        "_C.set_isa('baseline'); _C.set_isa(''); print(_C.active_isa())"
    )
    run = run_without_torch(isa, code)
    expected = isa or _C.supported_isas()[-1]
    folded = _C.fold_probes(300000, ctypes.addressof(seeds), 2, 128)
    assert (run.stdout, run.stderr) == (f"{expected} False {folded}\n{expected}\n", "")


def test_environment_names_an_instruction_set_that_is_not_there():
    code = "_C.compiled_isas(); _C.active_isa()"  # the module loads, and says what it has
    run = run_without_torch("avx1024", code)
    assert run.returncode == 1
    names = ", ".join(_C.compiled_isas())
    expected = f"ZO_KERNELS_ISA asks for the instruction set 'avx1024', which this build does not know; it has: {names}"
    assert run.stderr.strip().endswith(expected)


def test_stub_describes_the_module():
    """_C.pyi, which the type checker believes, names what the module has."""
    stub = importlib.util.find_spec("zo_kernels").submodule_search_locations[0] + "/_C.pyi"
    with open(stub) as file:
        text = file.read()
    for name in dir(_C):
        if not name.startswith("__"):
            assert f"def {name}(" in text or f"{name}:" in text, name
