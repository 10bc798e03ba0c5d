"""Which backend computes: by device, by set_backend, by `with zo.backend`, and never another one than asked for."""

import asyncio
import logging
import re
import threading

import pytest
import torch

import zo_kernels as zo
from zo_kernels import backends
from zo_kernels.backends import BACKENDS, backend_for, cpu, get_backend


@pytest.fixture
def used(monkeypatch):
    """Names of the backends that computed a probe, in order."""
    names = []
    for backend in BACKENDS.values():

        def probe(*args, backend=backend, original=backend.probe):
            names.append(backend.name)
            original(*args)

        monkeypatch.setattr(backend, "probe", probe)
    return names


@pytest.fixture
def fresh_choice(monkeypatch):
    """As in a process in which nothing was computed yet."""
    monkeypatch.setattr(backends, "_automatic", {})


def compute():
    return zo.ops.probe(5, 3)


def test_names():
    assert {"cpu", "reference"} <= set(BACKENDS)
    assert all(name == backend.name for name, backend in BACKENDS.items())


def test_by_device(used):
    compute()
    assert used == ["cpu"]


def test_set_backend_and_back(used):
    zo.set_backend("reference")
    compute()
    zo.set_backend("cpu")
    compute()
    zo.set_backend("reference")
    zo.set_backend(None)
    compute()
    assert used == ["reference", "cpu", "cpu"]


def test_every_op_goes_to_the_backend_asked_for(monkeypatch):
    x = torch.ones(5)
    ops = {
        "probe": compute,
        "apply_probe": lambda: (zo.ops.apply_probe_(x, 1.0, 3), zo.ops.apply_probe(x, 1.0, 3, out=x)),
        "swap_probe": lambda: zo.ops.swap_probe_(x, 1.0, 3, 1.0, 3),
        "accumulate_probes": lambda: zo.ops.accumulate_probes_(x, [1.0], [3]),
    }
    for name, op in ops.items():

        def refuse(*args, name=name):
            raise ZeroDivisionError(name)

        monkeypatch.setattr(BACKENDS["reference"], name, refuse)
        op()  # by device: cpu
        before = x.clone(), x._version
        with zo.backend("reference"), pytest.raises(ZeroDivisionError, match=name):
            op()
        assert torch.equal(x, before[0])
        assert x._version == before[1]


def test_with_nests_and_ends(used):
    zo.set_backend("reference")
    with zo.backend("cpu") as outer:
        assert outer is BACKENDS["cpu"]
        compute()
        with zo.backend("reference"):
            compute()
            with zo.backend("cpu"):
                compute()
            compute()
        compute()
    compute()
    assert used == ["cpu", "reference", "cpu", "reference", "cpu", "reference"]


def test_with_ends_after_an_exception(used):
    with pytest.raises(KeyError), zo.backend("reference"):
        raise KeyError
    with pytest.raises(ValueError, match="multiple of 128"), zo.backend("reference"):
        zo.ops.probe(5, 3, offset=1)
    compute()
    assert used == ["cpu"]


def test_with_goes_before_set_backend(used):
    with zo.backend("cpu"):
        zo.set_backend("reference")
        compute()
    compute()
    assert used == ["cpu", "reference"]


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_with_is_for_this_thread_only(used):
    with zo.backend("reference"):
        in_a_thread(compute)
        compute()
    entered, leave = threading.Event(), threading.Event()

    def elsewhere():
        with zo.backend("reference"):
            entered.set()
            leave.wait(10)
            compute()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert entered.wait(10)
    compute()
    leave.set()
    thread.join()
    assert used == ["cpu", "reference", "cpu", "reference"]


def test_set_backend_is_for_all_threads(used):
    zo.set_backend("reference")
    in_a_thread(compute)
    in_a_thread(lambda: zo.set_backend(None))
    compute()
    assert used == ["reference", "cpu"]


def test_with_is_for_this_task_only(used):
    async def one(name, mine, other):
        with zo.backend(name):
            mine.set()
            await other.wait()
            compute()

    async def both():
        first, second = asyncio.Event(), asyncio.Event()
        await asyncio.gather(one("reference", first, second), one("cpu", second, first))

    asyncio.run(both())
    compute()
    assert sorted(used[:2]) == ["cpu", "reference"]
    assert used[2:] == ["cpu"]


ways_to_ask = pytest.mark.parametrize("ask", [zo.set_backend, get_backend, lambda name: zo.backend(name).__enter__()])


@ways_to_ask
@pytest.mark.parametrize("name", ["cuda9", "", "CPU", "cpu "])
def test_unknown(ask, name, used):
    zo.set_backend("reference")
    with pytest.raises(ValueError, match=f"^unknown backend '{name}': zo_kernels has {', '.join(BACKENDS)}$"):
        ask(name)
    compute()
    assert used == ["reference"]  # as before


@ways_to_ask
def test_unavailable(ask, used, monkeypatch):
    zo.set_backend("reference")
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", lambda: "the moon is full")
    with pytest.raises(RuntimeError, match=r"^backend 'cpu' can't be used: the moon is full$"):
        ask("cpu")
    compute()
    assert used == ["reference"]


def test_a_refusal_inside_with_keeps_it(used):
    with zo.backend("reference"):
        with pytest.raises(ValueError, match="unknown backend"), zo.backend("nonsense"):
            pass
        compute()
    assert used == ["reference"]


def test_missing_module_says_why(monkeypatch):
    monkeypatch.setattr(cpu, "_C", None)
    monkeypatch.setattr(cpu, "_import_error", "no _C.so", raising=False)
    reason = "its compiled module is missing (no _C.so); install the package with `pip install .`"
    assert BACKENDS["cpu"].unavailable() == reason
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        zo.set_backend("cpu")


def test_automatic_choice_is_made_and_logged_once(used, fresh_choice, caplog):
    with caplog.at_level(logging.INFO, "zo_kernels"):
        compute()
        compute()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", "cpu tensors: backend cpu")]
    assert used == ["cpu", "cpu"]


def test_automatic_choice_of_the_reference_is_a_warning(used, fresh_choice, caplog, monkeypatch):
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", lambda: "it was not built")
    compute()
    compute()
    message = "cpu tensors: backend reference; cpu can't be used: it was not built"
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", message)]
    assert used == ["reference", "reference"]


def test_devices(fresh_choice, monkeypatch):
    with zo.backend("cpu"), pytest.raises(RuntimeError, match=r"^backend 'cpu' does not compute on cuda tensors$"):
        backend_for("cuda")
    for name in ("cuda", "triton"):  # which a machine with a GPU has
        monkeypatch.setattr(BACKENDS[name], "unavailable", lambda: "it is not built")
    assert backend_for("cuda").name == "reference"
    with pytest.raises(RuntimeError, match=r"^no backend computes on xpu tensors$"):
        backend_for("xpu")
    for name, reason in (("cpu", "broken"), ("reference", "worse")):
        monkeypatch.setattr(BACKENDS[name], "unavailable", lambda reason=reason: reason)
    message = "no backend computes on cpu tensors; cpu can't be used: broken; reference can't be used: worse"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        backend_for("cpu")
