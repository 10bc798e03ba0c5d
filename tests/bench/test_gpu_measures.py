"""What the measures make of times: ratios, rates, and what is scaled."""

import pytest

from bench.gpu import measure_ops, measure_population, measure_steps, sizes
from bench.gpu.timing import in_turns, ratio, summary

SECONDS = {"copy": 2.0, "ours": 2.0, "usual": 8.0, "one by one": 8.0, "forward": 8.0, "step": 4.0, "probe": 1.0}


@pytest.fixture(autouse=True)
def known_times(monkeypatch):
    """Those above, 4 s for what is not among them."""

    def known(device, calls, *, rounds, warm_up=1, flush=False):
        for call in calls.values():
            call()
        return {name: [SECONDS.get(name, 4.0)] * rounds for name in calls}

    for module in (measure_ops, measure_population, measure_steps):
        monkeypatch.setattr(module, "in_turns", known)


def rows(result, key):
    return {row[key]: row for row in result["rows"]}


def test_ratio_and_summary():
    assert ratio([4.0, 9.0, 8.0], [2.0, 1.0, 2.0]) == 4.0  # of the rounds, not of the medians
    assert summary([0.5, 0.002, 0.004]) == {"ms": 4.0, "rounds": 3, "spread": [2.0, 500.0]}


def test_turns():
    calls = []
    actions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = in_turns("cpu", actions, rounds=3, warm_up=2)
    assert "".join(calls) == "ab" * 5
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_apply():
    result = measure_ops.apply("cpu", "cpu")
    assert result["figures"] == {f"of a copy, {on}": 0.5 for on in ON}
    gigabytes = {(row["op"], row["on"]): row["GB/s"] for row in result["rows"]}
    assert set(gigabytes) == {(op, on) for op in OPS for on in ON}
    assert gigabytes["copy", "float32, 1G"] == pytest.approx(2 * 4 * 1e5 / 2.0 / 1e9, abs=0.05)


OPS = ("copy", "apply_probe_", "apply_probe", "swap_probe_", "probe")
ON = [f"{dtype}, {name}" for dtype in ("float32", "bfloat16") for name in ("1M", "1G")]


def test_bytes_of_a_pass(monkeypatch):
    """A pass reads and writes, a probe only writes."""
    monkeypatch.setattr(measure_ops, "summary", lambda times: {"ms": 1e-6 * times[0]})
    result = measure_ops.apply("cpu", "cpu")
    gigabytes = {row["op"]: row["GB/s"] for row in result["rows"] if row["on"] == "bfloat16, 1G"}
    assert gigabytes == {"copy": 2e5, "apply_probe_": 1e5, "apply_probe": 1e5, "swap_probe_": 1e5, "probe": 2e5}
    assert measure_ops.members("cpu", "cpu")["figures"] == {"GB/s": 96 * 2 * 1000 * 4 / 2}


def test_accumulate():
    figures = measure_ops.accumulate("cpu", "cpu")["figures"]
    assert figures == {f"rate, {count}": 1e5 * count / 2 for count in (1, 16, 96, 512)}


def test_usual():
    """512 seeds, of which the usual code does 8."""
    result = measure_ops.over_usual("cpu", "cpu")
    assert result["figures"] == {"apply": 4.0, "accumulate": 4.0 * 64}
    assert rows(result, "what")["accumulate, usual"]["ms"] == 8e3 * 64


def test_one_by_one(monkeypatch):
    monkeypatch.setitem(sizes.ON["cpu"], "100k", sizes.ON["cpu"]["100k"]._replace(probes=12))
    result = measure_population.over_one_by_one("cpu", "batched")
    assert result["figures"] == {"times faster": 4.0 * 3}
    assert result["note"].startswith("12 probes; one by one: scaled from 4, flashrnn's vanilla (")


def test_step():
    small = sizes.ON["cpu"]
    assert (small["100k"].measured_probes, small["1.1B"].measured_probes, small["1.1B"].probes) == (4, 2, 4)
    assert measure_steps.step("cpu", "100k", "batched")["figures"] == {"seconds": 4.0}
    assert measure_steps.step("cpu", "1.1B", "batched")["figures"] == {"seconds": 4.0 + 8.0 * 2}


def test_correlation():
    """Float32 against float64: nearly one, and not one."""
    assert 0.9999 < measure_population.correlation("cpu", "batched")["figures"]["correlation"] < 1
