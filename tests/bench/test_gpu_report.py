"""The plan, the bars and the table of a GPU day."""

import importlib

import pytest

from bench.gpu.bars import BARS, Bar
from bench.gpu.plan import all_steps
from bench.gpu.report import exit_code, failures, judge, shown, table
from bench.gpu.sizes import SIZES
from bench.gpu.steps import Record, Step
from zo_kernels.models import LSTM


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_holds_together(device):
    steps = all_steps(device)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for number, step in enumerate(steps):
        module, function = step.target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), step
        assert step.name.split(".")[0] in ("check", "measure")
        assert step.is_check == (not step.needs)  # every figure stands on a check
        assert set(step.needs) <= {earlier.name for earlier in steps[:number] if earlier.is_check}
        assert all(type(value) is str for value in step.arguments.values())


def test_what_a_gpu_day_covers():
    names = {step.name for step in all_steps("cuda")}
    for backend in ("cuda", "triton", "reference"):
        for op in ("probe", "apply_probe_", "apply_probe", "apply_probes", "swap_probe_", "accumulate_probes_"):
            assert f"check.ops.{backend}.{op}" in names
    for cell in ("lstm", "gru", "elman", "slstm"):
        assert f"check.flash.{cell}.float32" in names
        assert cell == "slstm" or {f"check.population.{cell}", f"check.forward.{cell}"} <= names
    for size in SIZES:
        assert f"measure.step.{size}.batched" in names
    figures = {bar.steps for bar in BARS}
    assert all(any(fits(pattern, name) for name in names) for pattern in figures)


def fits(pattern, name):
    from fnmatch import fnmatch

    return fnmatch(name, pattern.format(device="cuda"))


def test_what_the_bars_need_comes_within_eight_minutes():
    """By the estimates, compiling flashrnn included; Triton and the rest of flashrnn may be left to the next run."""
    steps = all_steps("cuda")
    last = max(number for number, step in enumerate(steps) if step.name == "measure.step.1.1B.flash-bfloat16")
    assert sum(step.seconds for step in steps[: last + 1]) < 8 * 60


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("100k", 150_260), ("1M", 1_136_500), ("10M", 10_608_500), ("100M", 112_474_100), ("1.1B", 1_161_450_100)],
)
def test_sizes(name, parameters):
    size = SIZES[name]
    model = LSTM(size.vocab, size.embed, size.hidden_size, size.num_heads, device="meta")
    assert sum(p.numel() for p in model.parameters()) == size.parameters == parameters


def measured(**figures):
    return Record("measured", result={"figures": figures})


class TestBar:
    LEAST = Bar("a", "measure.ops.{device}.x", "f", at_least=2.0, unit="x")
    MOST = Bar("b", "measure.step.1M.*", "peak GB", at_most=1.0, by="seconds")

    def test_met_or_missed(self):
        for figure, verdict in ((2.0, "met"), (1.99, "MISSED"), (float("nan"), "MISSED")):
            judged = self.LEAST.judge({"measure.ops.cuda.x": measured(f=figure)}, "cuda")
            assert (judged["verdict"], judged["bar"], judged["step"]) == (verdict, "at least 2", "measure.ops.cuda.x")
        one = {"measure.step.1M.batched": measured(seconds=1.0, **{"peak GB": 1.0})}
        assert self.MOST.judge(one, "cuda")["verdict"] == "met"

    def test_one_run_gives_both_figures(self):
        """The fastest way counts, with its memory: not one way's time and another's memory."""
        records = {
            "measure.step.1M.batched": measured(seconds=2.0, **{"peak GB": 0.5}),
            "measure.step.1M.flash": measured(seconds=1.0, **{"peak GB": 3.0}),
            "measure.step.1M.slow": measured(seconds=0.5),
        }
        judged = self.MOST.judge(records, "cuda")
        assert (judged["measured"], judged["verdict"]) == (3.0, "MISSED")
        most = Bar("a", "measure.*", "f", at_most=1.0)
        judged = most.judge({"measure.a": measured(f=2.0), "measure.b": measured(f=1.0)}, "cuda")
        assert (judged["measured"], judged["step"]) == (1.0, "measure.b")

    def test_what_takes_less_than_a_limit_comes_first(self):
        records = {
            "measure.step.1M.batched": measured(seconds=2.0, **{"peak GB": 0.5}),
            "measure.step.1M.flash": measured(seconds=1.0, **{"peak GB": 3.0}),
        }
        limited = Bar("a", "measure.step.1M.*", "seconds", by="seconds", within=1.0)
        assert limited.judge(records, "cuda")["measured"] == 2.0
        del records["measure.step.1M.batched"]
        assert limited.judge(records, "cuda")["measured"] == 1.0

    def test_the_other_device_does_not_count(self):
        judged = self.LEAST.judge({"measure.ops.cpu.x": measured(f=3.0)}, "cuda")
        assert judged["verdict"] == "not measured: not done"
        assert self.LEAST.judge({"measure.ops.cpu.x": measured(f=3.0)}, "cpu")["verdict"] == "met"

    def test_reasons(self):
        records = {"measure.step.1M.a": Record("crashed", "boom"), "measure.step.1M.b": Record("left out", "no time")}
        assert self.MOST.judge(records, "cuda")["verdict"] == "not measured: boom; no time"

    def test_without_a_goal(self):
        judged = Bar("a", "measure.a", "f").judge({"measure.a": measured(f=2.0)}, "cuda")
        assert (judged["verdict"], judged["bar"]) == ("", "")


def test_a_rehearsal_is_not_judged():
    records = {"measure.ops.cpu.x": measured(f=3.0)}
    assert [entry["verdict"] for entry in judge([TestBar.LEAST, TestBar.MOST], records, "cpu")] == [
        "rehearsed",
        "not measured: not done",
    ]


def test_table():
    records = {"measure.ops.cuda.x": Record("measured", result={"figures": {"f": 12345.678}, "short": "by hand"})}
    assert table(judge([TestBar.LEAST, TestBar.MOST], records, "cuda")).splitlines()[2:] == [
        "| a | 1.23e+04 x (by hand) | at least 2 | met |",
        "| b |  | at most 1 | not measured: not done |",
    ]
    assert [shown(x) for x in (0.9, 0.99995, 1.0, 5.2e12)] == ["0.9", "1 - 5e-05", "1", "5.2e+12"]


def test_failures():
    records = {"check.a": Record("passed"), "check.b": Record("failed", "why"), "measure.c": Record("barred", "x")}
    assert failures(records) == ["FAILED check.b: why"]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["passed", "measured"], 0),
        (["passed", "failed", "left out"], 1),
        (["passed", "left out"], 2),
        (["passed", "crashed"], 2),
        (["passed", "barred"], 2),
        (["passed", None], 2),
    ],
)
def test_exit_code(statuses, code):
    steps = [Step(f"check.{i}", "", 1.0, "") for i in range(len(statuses))]
    records = {f"check.{i}": Record(status) for i, status in enumerate(statuses) if status}
    assert exit_code(steps, records) == code
